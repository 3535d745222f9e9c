"""How what is allowed falls along a ramp."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from prunion.trainer.config import TrainConfig, drop_ignored
from prunion.trainer.pruning import Schedule, make_recipe


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


def test_a_run_of_before_there_was_a_shape_goes_on_as_it_began() -> None:
    def shape(limit: float, **train: Any) -> object:
        run = {"budget": {"kind": "params", "limit": limit}, "train": train}
        return drop_ignored(run)["train"].get("ramp_shape", "auto")

    assert shape(0.1) == "linear"
    assert shape(30_000) == "linear"  # of a budget in numbers nobody knows the share
    assert shape(0.25) == "auto"  # which is linear there
    assert shape(0.1, recipe="once") == "auto"  # it has no ramp
