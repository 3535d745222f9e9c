"""A run's folder: one process at a time, and nothing of another program's is removed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from prunion.runtime.errors import OutputError, PrunionError
from prunion.trainer.run.folder import folder as run_folder
from prunion.trainer.run.folder.folder import Claim, foreign_to_run, make_folder

HOLD = """
import sys
from pathlib import Path
from prunion.trainer.run.folder.folder import Claim
with Claim(Path(sys.argv[1])) as claim:
    claim.take()
    print("taken", flush=True)
    sys.stdin.read()
"""


def test_two_processes_cannot_train_in_one_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "PATIENCE", 0.0)
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": 0, "cost": 1.0}\n', "utf-8")
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"taken\n"
        with Claim(tmp_path) as claim, pytest.raises(PrunionError, match="another process trains"):
            make_folder(tmp_path, force=True, resume=False, claim=claim)
        assert log.exists()
        other.kill()
    with Claim(tmp_path) as claim:
        claim.take()
        make_folder(tmp_path, force=True, resume=False, claim=claim)  # it has it already
    assert log.read_bytes() == b"", "by which it is known as a run's from the start"
    with Claim(tmp_path) as claim:
        claim.take()


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        (
            "metrics.jsonl",
            '{"epoch": 1, "loss": 2.0}\n',
            "holds a metrics.jsonl of another program",
        ),
        ("metrics.jsonl", '{"step": 1, "loss": 2.0}\n', "holds a metrics.jsonl of another program"),
        ("metrics.jsonl", "no JSON\n", "holds a metrics.jsonl of another program"),
        ("state.safetensors", "x", "holds state.safetensors"),
        ("record.json", "{}", "holds record.json"),
        ("graph.json", "{}", "holds graph.json"),
        ("tensorboard/events.out.tfevents.1", "x", "holds tensorboard"),
    ],
)
def test_force_leaves_what_another_program_calls_alike(
    tmp_path: Path, name: str, content: str, told: str
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content, "utf-8")
    assert foreign_to_run(tmp_path) == told
    with pytest.raises(PrunionError, match="--force replaces only"):
        make_folder(tmp_path, force=True, resume=False)
    assert (tmp_path / name).read_text("utf-8") == content


@pytest.mark.parametrize("log", ["", '{"st', '{"step": 0, "co', json.dumps({"step": 0, "cost": 1})])
def test_a_run_that_was_killed_early_is_one(tmp_path: Path, log: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(log, "utf-8")
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "events.out.tfevents.1").write_text("x", "utf-8")
    (tmp_path / "wandb" / "offline-run-1").mkdir(parents=True)
    assert foreign_to_run(tmp_path) == ""
    make_folder(tmp_path, force=True, resume=False)
    names = sorted(x.name for x in tmp_path.iterdir())
    assert names == ["metrics.jsonl", "wandb"]  # which may hold other programs' runs
    (tmp_path / "run.toml").touch()  # killed before its first line
    make_folder(tmp_path, force=True, resume=False)


class Killed(BaseException):
    """Nothing catches it, as nothing catches a `kill -9`."""


@pytest.mark.parametrize("moment", range(20))
def test_force_that_is_killed_can_be_given_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    folder = tmp_path / "run"
    _a_run(folder)
    left = iter(range(moment))

    def until(plain: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if next(left, None) is None:
                raise Killed
            return plain(*args, **options)

        return call

    with monkeypatch.context() as patch, suppress(Killed):
        for name in ("unlink", "replace", "rmdir", "open"):
            patch.setattr(os, name, until(getattr(os, name)))
        patch.setattr(Path, "write_bytes", until(Path.write_bytes))
        make_folder(folder, force=True, resume=False)
    make_folder(folder, force=True, resume=False)
    assert sorted(x.name for x in folder.iterdir()) == ["metrics.jsonl", "run.toml"]


def test_what_cannot_be_removed_is_told_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _a_run(tmp_path)

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "model.safetensors")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", refuse)
        with pytest.raises(OutputError, match=r"\.tensorboard\.\w+ of the run before cannot be"):
            make_folder(tmp_path, force=True, resume=False)
    assert not (tmp_path / "checkpoint").exists()  # nobody exports the run before for this one
    make_folder(tmp_path, force=True, resume=False)


def _a_run(folder: Path) -> None:
    """What a finished run leaves, by name."""
    for name in ("state.safetensors", "own.safetensors", "graph.json", "record.json", "run.toml"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x", "utf-8")
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 0, "cost": 1}) + "\n", "utf-8")
    (folder / "tensorboard").mkdir()
    (folder / "tensorboard" / "events.out.tfevents.1").write_text("x", "utf-8")
    (folder / "checkpoint").mkdir()
    for name in ("model.safetensors", "units.json"):
        (folder / "checkpoint" / name).write_text("x", "utf-8")
    facts = {"format_version": 1, "config": {}, "domains": []}
    (folder / "checkpoint" / "checkpoint.json").write_text(json.dumps(facts), "utf-8")
