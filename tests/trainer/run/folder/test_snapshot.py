"""A stored state that is of another run says how to come back to it."""

from __future__ import annotations

import json
import shlex
import signal
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from prunion.runtime.errors import CheckpointError, StoppedError
from prunion.trainer.config import load_config
from prunion.trainer.learning import Training
from prunion.trainer.run import train_run
from tests.support.tiny_run import tiny_run


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a finished run beside it, in `out`."""
    path = tiny_run(tmp_path_factory.mktemp("run"), warmup=1, ramp=0, settle=0)
    text = path.read_text("utf-8").replace("[domains.warm]", '[domains."warm.v1"]')
    path.write_text(text.replace("limit = 0.5", 'limit = "0.5"'), "utf-8")
    train_run(load_config(path), path.parent / "out")
    return path


@pytest.mark.parametrize(
    "change",
    [
        'domains."warm.v1".mirror=true',  # a name with a dot
        "budget.limit=0.5",  # a text that reads as a number
        "input.size=[16, 24]",
    ],
)
def test_the_option_that_is_named_makes_it_the_run_of_before(run_file: Path, change: str) -> None:
    before, other = load_config(run_file), load_config(run_file, [change])
    with pytest.raises(CheckpointError, match="--set") as told:
        train_run(other, run_file.parent / "out", resume=True)
    option = shlex.split(str(told.value).split("(--set ")[1].split("): resume")[0])[0]
    assert load_config(run_file, [change, option]) == before


def test_a_run_whose_budget_was_held_otherwise_is_not_gone_on_with(tmp_path: Path) -> None:
    """An earlier prunion held it by the domains' losses: going on would be another run."""
    run_file = tiny_run(tmp_path, warmup=1, ramp=0, settle=0, sharing='"jaccard"')
    config = load_config(run_file)
    train_run(config, tmp_path / "out")
    train_run(config, tmp_path / "out", resume=True)
    state = tmp_path / "out" / "state.safetensors"
    with safe_open(state, framework="pt") as file:
        meta = json.loads(file.metadata()["prunion"])
    meta["multipliers"].pop()
    save_file(load_file(state), state, {"prunion": json.dumps(meta)})
    with pytest.raises(CheckpointError, match=r"held in another way.*sharing = 'jaccard'"):
        train_run(config, tmp_path / "out", resume=True)


def test_a_run_of_before_goes_on_with_its_linear_ramp_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file says no shape, and to less than a fifth today's ramp is another one."""
    run_file = tiny_run(tmp_path, warmup=1, ramp=4, settle=1)
    out, step = tmp_path / "out", Training._step

    def stopping(self: Training, *args: object) -> object:
        if self.phase == "ramp":
            signal.raise_signal(signal.SIGTERM)
        return step(self, *args)  # type: ignore[arg-type]

    steep, linear = "budget.limit=0.15", "train.ramp_shape=linear"
    with monkeypatch.context() as patch:
        patch.setattr(Training, "_step", stopping)
        with pytest.raises(StoppedError):
            train_run(load_config(run_file, [steep, linear]), out)
    state = out / "state.safetensors"
    with safe_open(state, framework="pt") as file:
        meta = json.loads(file.metadata()["prunion"])
    del meta["made_by"]["config"]["train"]["ramp_shape"]
    save_file(load_file(state), state, {"prunion": json.dumps(meta)})
    with pytest.raises(CheckpointError, match=r"a linear ramp.*--set train\.ramp_shape=linear"):
        train_run(load_config(run_file, [steep]), out, resume=True)
    assert train_run(load_config(run_file, [steep, linear]), out, resume=True).budget["met"]
