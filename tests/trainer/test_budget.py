"""The budget is met after rounding, or refused before training."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunion.runtime.errors import BudgetError
from prunion.trainer.budget import cost_of, make_budget, round_up, select_union
from prunion.trainer.config import BudgetConfig
from prunion.trainer.trace import trace
from prunion.trainer.units import find_units
from tests.trainer.nets import Depthwise, Plain, Residual, SqueezeExcite

UNITS = [find_units(trace(model(), 8, 8)) for model in (Plain, Residual, Depthwise, SqueezeExcite)]


@settings(max_examples=200, deadline=None)
@given(
    which=st.integers(0, len(UNITS) - 1),
    limit=st.floats(0.05, 1.0),
    kind=st.sampled_from(["params", "macs"]),
    multiple=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 1000),
)
def test_every_selection_meets_its_budget(
    which: int, limit: float, kind: str, multiple: int, seed: int
) -> None:
    units = UNITS[which]
    config = BudgetConfig(limit, kind, multiple)
    try:
        budget = make_budget(config, units.table, units.group)
    except BudgetError as refusal:
        least = float(str(refusal).rsplit("at least ", 1)[1])
        make_budget(BudgetConfig(least, kind, multiple), units.table, units.group)
        assert least > limit
        return
    score = np.random.default_rng(seed).random(units.table.count)
    alive = select_union(score, units.table, units.group, budget)
    assert cost_of(units.table, kind, alive) <= budget.allowed
    for group in np.unique(units.group):
        members = units.group == group
        width = int(alive[members].sum())
        assert width >= 1
        assert width % multiple == 0 or width == members.sum()


def test_nothing_is_cut_for_a_budget_of_one() -> None:
    units = UNITS[1]
    budget = make_budget(BudgetConfig(1.0), units.table, units.group)
    assert select_union(np.zeros(units.table.count), units.table, units.group, budget).all()


def test_the_refusal_names_the_smallest_budget() -> None:
    units = UNITS[0]
    with pytest.raises(BudgetError, match=r"\[budget\] limit 1e-06 .* give at least 0\.\d+"):
        make_budget(BudgetConfig(1e-6), units.table, units.group)


def test_an_absolute_amount_is_taken_as_written() -> None:
    units = UNITS[0]
    budget = make_budget(BudgetConfig("0.3k"), units.table, units.group)
    assert budget.allowed == 300
    alive = select_union(np.random.rand(units.table.count), units.table, units.group, budget)
    assert units.table.params(alive) <= 300


def test_rounding_brings_back_the_best_of_each_group() -> None:
    group = np.zeros(8, dtype=int)
    alive = np.array([True, False, False, False, False, False, False, False])
    score = np.array([9, 1, 8, 2, 7, 3, 6, 4.0])
    assert np.flatnonzero(round_up(alive, group, 4, score)).tolist() == [0, 2, 4, 6]
