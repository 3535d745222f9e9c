"""A stored state that is of another run says how to come back to it."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from prunion.runtime.errors import CheckpointError
from prunion.trainer.config import load_config
from prunion.trainer.run import train_run
from tests.trainer.tiny_run import tiny_run


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
