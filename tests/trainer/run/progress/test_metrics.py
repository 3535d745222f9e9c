"""Every figure lands in a line of JSON, and in TensorBoard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prunion.runtime.errors import DataError
from prunion.trainer.run.folder import drop_lines_after
from prunion.trainer.run.progress import MetricsLog


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_line_holds_the_step_and_flat_names(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "run") as log:
        log.log(3, loss=torch.tensor(0.5), phase="ramp", accuracy={"flowers": np.float32(0.25)})
        assert lines(tmp_path / "run")  # flushed at once
    assert lines(tmp_path / "run") == [
        {"step": 3, "loss": 0.5, "phase": "ramp", "accuracy/flowers": 0.25}
    ]


def test_opening_again_appends_and_mends_half_a_line(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        log.log(1, loss=1.0)
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 2, "lo')
    with MetricsLog(tmp_path) as log:
        log.log(2, loss=0.5)
    text = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(text[0]), json.loads(text[2])] == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 0.5},
    ]


def test_what_is_not_finite_stays_valid_json(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        log.log(1, loss=float("nan"), best=float("inf"))
    assert lines(tmp_path) == [{"step": 1, "loss": None, "best": None}]


def test_tensorboard_gets_the_scalars(tmp_path: Path) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is optional"
    )
    with MetricsLog(tmp_path) as log:
        for step in range(3):
            log.log(step, accuracy={"flowers": step / 4})
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.value for event in events.Scalars("accuracy/flowers")] == [0, 0.25, 0.5]


def test_tensorboard_forgets_what_a_resumed_run_takes_again(tmp_path: Path) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is optional"
    )
    with MetricsLog(tmp_path) as log:
        for step in range(5):
            log.log(step, loss=1.0)
    with MetricsLog(tmp_path, after=2) as log:
        for step in range(3, 5):
            log.log(step, loss=0.5)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    values = {event.step: event.value for event in events.Scalars("loss")}
    assert values == {0: 1.0, 1: 1.0, 2: 1.0, 3: 0.5, 4: 0.5}
    assert len(events.Scalars("loss")) == 5


@pytest.mark.parametrize("after", [0, 2])
def test_tensorboard_has_no_figure_twice_of_a_run_that_was_killed(
    tmp_path: Path, after: int
) -> None:
    """The first step behind a state has the number of what was measured before it."""
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is optional"
    )
    with MetricsLog(tmp_path) as log:
        for step in range(4):
            if step == 2:
                log.log(step, accuracy={"a": 0.5}, phase="warmup")
            log.log(step, loss=1.0, cost=1.0)
    (file,) = (tmp_path / "tensorboard").iterdir()
    file.rename(file.with_name("events.out.tfevents.1"))  # of another process, and another second
    drop_lines_after(tmp_path / "metrics.jsonl", after)
    with MetricsLog(tmp_path, after=after) as log:
        for step in range(after, 4):
            log.log(step, loss=0.5, cost=1.0)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    told = [(x["step"], x["loss"]) for x in lines(tmp_path) if "loss" in x]
    assert [(event.step, event.value) for event in events.Scalars("loss")] == told
    if after:
        assert [event.step for event in events.Scalars("accuracy/a")] == [2]


def test_a_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"metrics\.jsonl cannot be written .* another run folder"):
        MetricsLog(tmp_path / "file")
