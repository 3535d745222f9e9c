"""A run's folder: one process at a time, and nothing of another program's is removed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from prunion.runtime.errors import PrunionError
from prunion.trainer.run import folder as run_folder
from prunion.trainer.run.folder import Claim, foreign_to_run, make_folder

HOLD = """
import sys
from pathlib import Path
from prunion.trainer.run.folder import Claim
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
