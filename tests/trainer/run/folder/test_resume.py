"""A run that is killed again and again ends with the bytes of one that never was."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from prunion.runtime.base import sha256_file
from prunion.runtime.errors import CheckpointError, PrunionError
from prunion.trainer.config import TrainConfig, load_config
from prunion.trainer.learning import Training
from prunion.trainer.learning.interrupt import StoppedError, StopRequest
from prunion.trainer.run import train_run
from prunion.trainer.run.folder.folder import check_folder, drop_lines_after, make_folder
from tests.support.forked import Forked, forked_prunion
from tests.support.tiny_run import tiny_run

SIGNALS = (signal.SIGTERM, signal.SIGINT)
FILES = ("checkpoint.json", "model.safetensors", "units.json")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A run file and the hashes of its checkpoint."""
    folder = tmp_path_factory.mktemp("whole")
    run_file = tiny_run(folder, warmup=2, ramp=4, settle=2, ranking='"random"')
    train_run(load_config(run_file), folder / "out", run_file=run_file)
    return run_file, hashes(folder / "out")


def hashes(folder: Path) -> dict[str, str]:
    return {name: sha256_file(folder / "checkpoint" / name) for name in FILES}


def logged(folder: Path) -> list[dict]:
    return [json.loads(x) for x in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]


def steps_of(folder: Path) -> list[int]:
    return [line["step"] for line in logged(folder) if "cost" in line]


def lines(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_and_resume(
    run_file: Path, folder: Path, signals: list[signal.Signals], most: int, seed: int
) -> list[int]:
    """Train in processes of their own, each stopped within `most` steps after it began to learn."""
    rng, codes = random.Random(seed), []
    for kill in range(len(signals) + 1):
        resume = ["--resume"] if kill else []
        slow = 0.1 if kill < len(signals) else 0.0  # or a busy machine lets it end unharmed
        process = forked_prunion("train", run_file, "-o", folder, *resume, step_s=slow)
        if kill < len(signals):
            before = 0 if not kill else None
            wait_for_steps(process, folder, rng.randint(1, most), before)
            time.sleep(rng.random() * 0.05)
            process.send_signal(signals[kill])
        _, errors = process.communicate(timeout=120)
        codes.append(process.returncode)
        if process.returncode == 143:
            *notes, last = errors.strip().splitlines()
            assert last.startswith("stopped by SIGTERM after ")
            begun = ("note: domain ", "note: epoch ", "note: fitting ", "note: heads start ")
            assert all(line.startswith(begun) for line in notes), errors
        elif process.returncode == 0:
            break
        else:
            assert process.returncode == -signal.SIGKILL, errors
    return codes


def wait_for_steps(process: Forked, folder: Path, more: int, before: int | None) -> None:
    start = lines(folder) if before is None else before
    lowest, deadline = start, time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        now = lines(folder)
        lowest = min(lowest, now)  # resuming drops the lines after the last state
        if now >= lowest + more and (now != start or not start):
            return
        time.sleep(0.005)


@pytest.mark.thorough  # what it adds to the stops within one process, below, is SIGKILL
def test_killed_twice_the_checkpoint_is_the_same(
    whole: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    signals = [signal.SIGKILL, signal.SIGTERM]
    codes = kill_and_resume(whole[0], tmp_path / "out", signals, most=4, seed=0)
    assert codes == [-signal.SIGKILL, 143, 0]
    assert hashes(tmp_path / "out") == whole[1]
    assert steps_of(tmp_path / "out") == list(range(len(steps_of(tmp_path / "out"))))


@pytest.mark.slow
def test_killed_ten_times_the_checkpoint_is_the_same(tmp_path: Path) -> None:
    """`kill -9` at ten random moments of warm-up, ramp and settling."""
    run_file = tiny_run(tmp_path, warmup=8, ramp=24, settle=24)
    train_run(load_config(run_file), tmp_path / "whole")
    kills = [signal.SIGKILL] * 10
    codes = kill_and_resume(run_file, tmp_path / "out", kills, most=12, seed=random.randrange(1000))
    assert codes == [*(-kill for kill in kills), 0]
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")


def test_what_changes_no_result_may_change(tmp_path: Path) -> None:
    config = load_config(tiny_run(tmp_path, warmup=1, ramp=0, settle=0))
    train_run(config, tmp_path / "out")
    more = replace(config.train, workers=1)
    other = replace(config, threads=2, device="cpu", train=more)
    train_run(other, tmp_path / "out", resume=True)


def test_a_state_older_than_a_key_is_gone_on_with(tmp_path: Path) -> None:
    """Every key that stands at its default may be missing from what an earlier prunion wrote.

    But for what moved its trunk, which had AdamW.
    """
    run_file = tiny_run(tmp_path, warmup=1, ramp=0, settle=0, trunk_optimiser='"adamw"')
    config = load_config(run_file)
    train_run(config, tmp_path / "out")
    state = tmp_path / "out" / "state.safetensors"
    with safe_open(state, framework="pt") as file:
        meta = json.loads(file.metadata()["prunion"])
    train = meta["made_by"]["config"]["train"]
    defaults = asdict(TrainConfig())
    for key in [x for x in train if train[x] == defaults[x] or x == "trunk_optimiser"]:
        del train[key]
    del meta["made_by"]["config"]["budget"]["floor"]
    save_file(load_file(state), state, {"prunion": json.dumps(meta)})
    train_run(config, tmp_path / "out", resume=True)
    with pytest.raises(CheckpointError, match=r"for \[budget\] floor was 0\.0 and is 0\.5"):
        budget = replace(config.budget, floor=0.5)
        train_run(replace(config, budget=budget), tmp_path / "out", resume=True)


def test_the_key_that_differs_is_named_with_both_values(tmp_path: Path) -> None:
    config = load_config(tiny_run(tmp_path, warmup=1, ramp=0, settle=0, lr=0.25))
    train_run(config, tmp_path / "out")
    other = replace(config, train=replace(config.train, lr=0.125))
    with pytest.raises(CheckpointError, match=r"for \[train\] lr was 0\.25 and is 0\.125"):
        train_run(other, tmp_path / "out", resume=True)
    mirrored = tuple(replace(domain, mirror=True) for domain in config.domains)
    back = r"was False and is True \(--set domains\.warm\.mirror=false\)"
    with pytest.raises(CheckpointError, match=rf"\[domains\.warm\] mirror {back}"):
        train_run(replace(config, domains=mirrored), tmp_path / "out", resume=True)


def test_domains_in_another_order_are_not_resumed_with(tmp_path: Path) -> None:
    config = load_config(tiny_run(tmp_path, warmup=1, ramp=0, settle=0))
    # Of the same images: nothing but their names tells which row of the bank is whose.
    twin = replace(config.domains[0], name="twin")
    config = replace(config, domains=(config.domains[0], twin))
    train_run(config, tmp_path / "out")
    train_run(config, tmp_path / "out", resume=True)
    with pytest.raises(
        CheckpointError, match=r"in another order \(was warm, twin, is twin, warm\)"
    ):
        train_run(replace(config, domains=config.domains[::-1]), tmp_path / "out", resume=True)


def test_other_images_are_not_resumed_with(tmp_path: Path) -> None:
    run_file = tiny_run(tmp_path, warmup=1, ramp=0, settle=0)
    config = load_config(run_file)
    train_run(config, tmp_path / "out")
    noise = np.random.default_rng(0).integers(0, 255, (24, 30, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "data" / "warm" / "train" / "red" / "more.png")
    told = r"other images \(\[domains\.warm\] had (\d+) training images and has (\d+)\): resume"
    with pytest.raises(CheckpointError, match=told) as caught:
        train_run(config, tmp_path / "out", resume=True)
    found = re.search(told, str(caught.value))
    assert found and int(found[2]) == int(found[1]) + 1


def test_as_many_images_under_other_labels_are_other_images(tmp_path: Path) -> None:
    run_file = tiny_run(tmp_path, warmup=1, ramp=0, settle=0)
    config = load_config(run_file)
    train_run(config, tmp_path / "out")
    train = tmp_path / "data" / "warm" / "train"
    (train / "red").rename(train / "other")
    (train / "green").rename(train / "red")
    (train / "other").rename(train / "green")
    told = r"other images \(\[domains\.warm\] has other training images, as many as before\)"
    with pytest.raises(CheckpointError, match=told):
        train_run(config, tmp_path / "out", resume=True)


def test_another_teacher_at_the_same_place_is_not_resumed_with(tmp_path: Path) -> None:
    teacher = replace(load_config(tiny_run(tmp_path, warmup=1, ramp=0, settle=0)), seed=5)
    train_run(teacher, tmp_path / "teacher")
    config = replace(teacher, train=replace(teacher.train, teacher=str(tmp_path / "teacher")))
    train_run(config, tmp_path / "out")
    train_run(config, tmp_path / "out", resume=True)
    train_run(replace(teacher, seed=6), tmp_path / "teacher", force=True)
    with pytest.raises(CheckpointError, match="another teacher"):
        train_run(config, tmp_path / "out", resume=True)


def test_a_file_is_no_run_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("notes")
    for force, resume in ((False, False), (True, False), (False, True)):
        with pytest.raises(PrunionError, match="out is a file: give -o a folder"):
            check_folder(tmp_path / "out", force=force, resume=resume)
    with pytest.raises(PrunionError, match=r"cannot be made"):
        make_folder(tmp_path / "out" / "below", force=False, resume=False)


def test_stopped_at_every_few_steps_it_goes_on_bit_for_bit(
    whole: tuple[Path, dict[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In one process, so that the stops fall in the middle of every phase's epochs."""
    step, taken = Training._step, []

    def signals(self: Training, *args: object) -> object:
        taken.append(self.step)
        for weight, moments in self.optimiser.state.items():  # a GPU's AdamW insists on it
            for name in {"exp_avg", "momentum_buffer"} & moments.keys():
                assert moments[name].stride() == weight.stride()
        if len(taken) % 4 == 3:
            signal.raise_signal(SIGNALS[stops % 2])
        return step(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Training, "_step", signals)
    config = load_config(whole[0])
    stops = 0
    while True:
        try:
            train_run(config, tmp_path / "out", resume=stops > 0)
            break
        except StoppedError as stop:
            assert stop.code == 128 + SIGNALS[stops % 2]
            stops += 1
            assert "--resume" in str(stop)
            assert not (tmp_path / "out" / "checkpoint").exists()
    assert stops >= 5
    assert taken == sorted(set(taken))  # no step was lost or taken twice
    assert hashes(tmp_path / "out") == whole[1]
    log = map(json.loads, (tmp_path / "out" / "metrics.jsonl").read_text("utf-8").splitlines())
    assert sum("mean_sparsity" in line for line in log) == config.train.epochs  # once an epoch
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_signal_is_the_runs_affair_not_its_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C reaches the forked readers of images too, which inherit the handler."""
    request = StopRequest()
    request.now = "after the last step"
    with monkeypatch.context() as worker:
        worker.setattr(os, "getpid", lambda: request.process + 1)
        request.handle(signal.SIGINT, None)
        request.handle(signal.SIGINT, None)
        assert not request
    with pytest.raises(PrunionError, match="stopped by SIGINT after the last step") as caught:
        request.handle(signal.SIGINT, None)
    assert caught.type is StoppedError


def test_a_signal_after_the_last_look_at_it_is_not_lost() -> None:
    request = StopRequest()
    request.at_once("after the last step")
    request.now = ""  # as where more is trained
    request.handle(signal.SIGTERM, None)
    with pytest.raises(StoppedError, match="stopped by SIGTERM after the last step"):
        request.at_once("after the last step")


def test_steps_after_the_saved_state_leave_the_log(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": 0, "cost": 1}, {"step": 1, "cost": 1}, {"step": 2, "accuracy_before/a": 0.5}]
    later = [{"step": 2, "cost": 1}, {"step": 3, "cost": 1}]
    path.write_text("\n".join(json.dumps(r) for r in rows + later) + '\n{"step": 4, "co', "utf-8")
    drop_lines_after(path, 2)
    assert logged(tmp_path) == rows


def test_a_run_killed_before_its_first_state_starts_again(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "run.toml").write_text("", "utf-8")
    (folder / ".state.safetensors.x1").write_bytes(b"half")
    make_folder(folder, force=False, resume=True)
    # Known as a run's from then on, as `train --force` asks.
    assert sorted(p.name for p in folder.iterdir()) == ["metrics.jsonl", "run.toml"]
