"""How what is allowed falls along a ramp."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prunion.trainer.config import TrainConfig, changed_keys, load_config, todays_config
from prunion.trainer.pruning import Schedule, make_recipe
from prunion.trainer.score import baseline_of
from tests.support.tiny_run import tiny_run


def test_a_geometric_ramp_takes_the_same_share_at_each_step() -> None:
    ramp = Schedule(warmup=4, ramp=20, settle=5, beta=0.1, geometric=True)
    targets = np.array([ramp.target(step) for step in range(4, 24)])
    ratios = targets[1:18] / targets[:17]
    np.testing.assert_allclose(ratios, 0.1 ** (1 / 18))
    assert targets[17:] == pytest.approx(0.1)  # the last tenth holds still
    linear = replace(ramp, geometric=False)
    assert all(linear.target(step) > ramp.target(step) for step in range(4, 21))


def schedule_of(beta: float, **train: Any) -> Schedule:
    """Of a run with these keys of `[train]`."""
    return make_recipe(
        TrainConfig(**train),
        lambda kept: kept.mean(),
        lambda worth, used: np.ones(4, bool),
        beta=beta,
        domains=2,
        units=4,
        steps_per_epoch=5,
    ).schedule


@pytest.mark.parametrize("recipe", ["prunion", "greedy"])
def test_a_steep_ramp_is_geometric_where_nothing_is_said(recipe: str) -> None:
    assert schedule_of(0.1, recipe=recipe).geometric
    assert not schedule_of(0.25, recipe=recipe).geometric
    assert not schedule_of(0.1, recipe=recipe, ramp_shape="linear").geometric
    assert schedule_of(0.25, recipe=recipe, ramp_shape="geometric").geometric


def test_a_share_that_is_rounded_is_not_steep() -> None:
    assert not schedule_of(0.2 * 43 / 43).geometric and not schedule_of(0.2 - 1e-9).geometric


def test_a_run_of_before_there_was_a_shape_is_like_those_of_either_name(tmp_path: Path) -> None:
    now = load_config(tiny_run(tmp_path)).to_json()
    before = {**now, "train": {k: v for k, v in now["train"].items() if k != "ramp_shape"}}
    linear = {**now, "train": {**now["train"], "ramp_shape": "linear"}}
    for other in (now, linear):
        assert not list(changed_keys(todays_config(before), todays_config(other)))
    assert list(changed_keys(todays_config(now), todays_config(linear)))


def test_a_whole_network_has_no_shape(tmp_path: Path) -> None:
    """So the baseline of a run is the same whichever it has."""
    config = load_config(tiny_run(tmp_path))
    shaped = replace(config, train=replace(config.train, ramp_shape="linear"))
    assert baseline_of(shaped) == baseline_of(config)
