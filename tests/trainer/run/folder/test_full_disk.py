"""A disk that fills up: said before the first step, and no state is lost when it happens later."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from prunion.runtime.base import sha256_file
from prunion.runtime.base.files import outputs
from prunion.runtime.errors import DataError, OutputError, PrunionError
from prunion.trainer.config import load_config
from prunion.trainer.learning.training import Training
from prunion.trainer.run import train, train_run
from prunion.trainer.run.folder import beginning, states
from prunion.trainer.run.progress import MetricsLog
from tests.support.tiny_run import tiny_run


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Training, "run_epoch", lambda *_: pytest.fail("it began to train"))


@pytest.mark.usefixtures("no_step")
def test_what_will_not_fit_is_refused_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 1 << 20

    monkeypatch.setattr(outputs.shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(OutputError, match=r"out needs .* MiB, and 1\.0 MiB are free.* -o"):
        train_run(load_config(tiny_run(tmp_path)), tmp_path / "out")


@pytest.mark.usefixtures("no_step")
def test_names_that_cannot_be_written_are_refused_before_the_first_step(tmp_path: Path) -> None:
    config = load_config(tiny_run(tmp_path))
    place = tmp_path / "data" / "warm"
    for bad in (b"gr\xffen", b"two\nlines"):
        for part in ("train", "test"):
            os.rename(place / part / "green", os.fsencode(place / part) + b"/" + bad)
        with pytest.raises(DataError, match=r"\[domains.warm\] train has a class .* rename it"):
            train_run(config, tmp_path / "out")
        for part in ("train", "test"):
            os.rename(os.fsencode(place / part) + b"/" + bad, place / part / "green")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_step")
def test_what_only_the_end_computes_is_tried_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise PrunionError("the end cannot be computed")

    monkeypatch.setattr("prunion.trainer.run.result.result.run_score", broken)
    with pytest.raises(PrunionError, match="the end cannot be computed"):
        train_run(load_config(tiny_run(tmp_path)), tmp_path / "out")


def test_a_first_state_that_cannot_be_saved_is_nothing_to_go_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states, "save_snapshot", lambda path, *_: replace_file_full(path))
    config = load_config(tiny_run(tmp_path, warmup=1, ramp=0, settle=0))
    with pytest.raises(
        OutputError, match="no state was saved yet, so the run starts again"
    ) as told:
        train_run(config, tmp_path / "out")
    assert "--resume" not in str(told.value)


def replace_file_full(path: Path) -> None:
    raise OutputError(f"{path} cannot be written (No space left on device): free some space")


def test_seconds_are_those_of_all_processes_that_a_run_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, out = load_config(tiny_run(tmp_path, ramp=0)), tmp_path / "out"
    save, saved = states.save_snapshot, []

    def stopped(*arguments: object) -> None:
        save(*arguments)  # type: ignore[arg-type]
        saved.append(arguments[2])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(states, "save_snapshot", stopped)
        with pytest.raises(KeyboardInterrupt):
            train_run(config, out)
    assert 0 < saved[0]["seconds"] < 600
    load = beginning.load_snapshot
    with monkeypatch.context() as patch:
        patch.setattr(beginning, "load_snapshot", lambda *a: {**load(*a), "seconds": 1000.0})
        assert 1000 < train_run(config, out, resume=True).seconds < 1600
    assert json.loads((out / "record.json").read_text("utf-8"))["result"]["seconds"] > 1000


def test_a_state_that_cannot_be_saved_leaves_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(tiny_run(tmp_path))
    train_run(config, tmp_path / "whole")
    out, save, saved = tmp_path / "out", states.save_snapshot, []

    def fills_up(path: Path, *rest: object) -> None:
        if len(saved) == 2:
            monkeypatch.setattr(outputs.os, "fsync", full)
        saved.append(path)
        save(path, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(states, "save_snapshot", fills_up)
        with pytest.raises(OutputError, match=r"state\.safetensors cannot be written") as caught:
            train_run(config, out)
    assert "the last good state is" in str(caught.value) and "--resume" in str(caught.value)
    monkeypatch.undo()
    train_run(config, out, resume=True)
    same = (
        sha256_file(tmp_path / x / "checkpoint" / "model.safetensors") for x in ("whole", "out")
    )
    assert len(set(same)) == 1


def test_a_checkpoint_that_cannot_be_saved_is_finished_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(tiny_run(tmp_path, ramp=0, settle=0))
    save = train.save_checkpoint

    def fills_up(*args: object, **named: object) -> None:
        monkeypatch.setattr(outputs.os, "fsync", full)
        save(*args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(train, "save_checkpoint", fills_up)
    with pytest.raises(OutputError, match=r"out.checkpoint.units\.json cannot be .*finish it with"):
        train_run(config, tmp_path / "out")
    monkeypatch.undo()
    train_run(config, tmp_path / "out", resume=True)
    assert (tmp_path / "out" / "checkpoint" / "checkpoint.json").is_file()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a full device")
def test_a_log_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with (
        pytest.raises(OutputError, match=r"metrics\.jsonl cannot be written \(No space left"),
        MetricsLog(tmp_path) as log,
    ):
        log.log(0, loss=json.loads("1.0"))
