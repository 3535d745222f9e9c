"""The budget is met after rounding, or refused before training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunion.runtime.errors import BudgetError
from prunion.trainer.config.run import BudgetConfig
from prunion.trainer.cost.budget import cost_of, make_budget, round_up, select_union
from prunion.trainer.cost.counted import CostModel
from prunion.trainer.cost.prices import priced_table
from tests.trainer.nets import Depthwise, Plain, Residual, SqueezeExcite, domain_net

NETS = [domain_net(model()) for model in (Plain, Residual, Depthwise, SqueezeExcite)]
UNITS = [net.units for net in NETS]
KINDS = ["params", "macs", "bytes", "switches"]


@settings(max_examples=200, deadline=None)
@given(
    which=st.integers(0, len(NETS) - 1),
    limit=st.floats(0.05, 1.0),
    kind=st.sampled_from(KINDS),
    multiple=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 1000),
)
def test_every_selection_meets_its_budget(
    which: int, limit: float, kind: str, multiple: int, seed: int
) -> None:
    units, table = UNITS[which], priced_table(kind, NETS[which])
    config = BudgetConfig(limit, kind, multiple)
    try:
        budget = make_budget(config, table, units.group)
    except BudgetError as refusal:
        least = float(str(refusal).rsplit("at least ", 1)[1])
        make_budget(BudgetConfig(least, kind, multiple), table, units.group)
        assert least > limit
        return
    generator = np.random.default_rng(seed)
    score = generator.random(units.table.count)
    used = None if seed % 2 else generator.random(units.table.count) < 0.5
    alive = select_union(score, table, units.group, budget, used)
    assert cost_of(table, kind, alive) <= budget.allowed
    for group in np.unique(units.group):
        members = units.group == group
        width = int(alive[members].sum())
        assert width >= 1
        assert width % multiple == 0 or width == members.sum()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", range(len(NETS)))
def test_the_trained_cost_is_the_counted_one(which: int, kind: str) -> None:
    table = priced_table(kind, NETS[which])
    cost = CostModel(table, kind)
    full = cost_of(table, kind, np.ones(table.count, bool))
    generator = np.random.default_rng(0)
    for _ in range(10):
        alive = generator.random(table.count) < 0.6
        assert float(cost(torch.from_numpy(alive))) == pytest.approx(
            cost_of(table, kind, alive) / full, abs=1e-12
        )


def test_switches_are_counted_plainly() -> None:
    alive = np.arange(UNITS[1].table.count) < 5
    assert cost_of(priced_table("switches", NETS[1]), "switches", alive) == 5


def test_only_used_units_fill_a_budget_when_asked() -> None:
    units = UNITS[1]
    budget = make_budget(BudgetConfig(1.0), units.table, units.group)
    used = np.arange(units.table.count) % 2 == 0
    score = used.astype(float)
    assert (select_union(score, units.table, units.group, budget, used) == used).all()


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
