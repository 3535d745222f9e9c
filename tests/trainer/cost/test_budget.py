"""The budget is met after rounding, or refused before training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunion.runtime.errors import BudgetError, ConfigError
from prunion.trainer.config import BudgetConfig, BudgetKind
from prunion.trainer.cost import (
    Pricer,
    budget_account,
    counted_pricer,
    limit_doubt,
    make_budget,
    make_pricer,
    select_union,
)
from tests.support.networks.small import Depthwise, Plain, Residual, SqueezeExcite, domain_net

NETS = [domain_net(model()) for model in (Plain, Residual, Depthwise, SqueezeExcite)]
UNITS = [net.units for net in NETS]
KINDS: tuple[BudgetKind, ...] = ("params", "macs", "bytes", "switches")


def pricer(which: int, kind: BudgetKind = "params") -> Pricer:
    return make_pricer(BudgetConfig(1.0, kind), NETS[which])


@settings(max_examples=200)
@given(
    which=st.integers(0, len(NETS) - 1),
    limit=st.floats(0.05, 1.0),
    kind=st.sampled_from(KINDS),
    multiple=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 1000),
)
def test_every_selection_meets_its_budget(
    which: int, limit: float, kind: BudgetKind, multiple: int, seed: int
) -> None:
    units, prices = UNITS[which], pricer(which, kind)
    config = BudgetConfig(limit, kind, multiple)
    try:
        budget = make_budget(config, prices)
    except BudgetError as refusal:
        least = float(str(refusal).rsplit("at least ", 1)[1])
        make_budget(BudgetConfig(least, kind, multiple), prices)
        assert least > limit
        return
    generator = np.random.default_rng(seed)
    score = generator.random(units.table.count)
    used = None if seed % 2 else generator.random(units.table.count) < 0.5
    alive = select_union(score, budget, used)
    assert prices.of(alive) <= budget.allowed
    for members in units.table.widths:
        width = int(alive[members].sum())
        assert width >= 1
        assert width % multiple == 0 or width == len(members)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", range(len(NETS)))
def test_the_trained_cost_is_the_counted_one(which: int, kind: BudgetKind) -> None:
    prices = pricer(which, kind)
    cost, count = prices.cost_model(), prices.units.count
    assert prices.full == prices.of(np.ones(count, bool))
    generator = np.random.default_rng(0)
    for _ in range(10):
        alive = generator.random(count) < 0.6
        assert float(cost(torch.from_numpy(alive))) == pytest.approx(
            prices.of(alive) / prices.full, abs=1e-12
        )


def test_switches_are_counted_plainly() -> None:
    alive = np.arange(UNITS[1].table.count) < 5
    assert pricer(1, "switches").of(alive) == 5


def test_only_used_units_fill_a_budget_when_asked() -> None:
    units = UNITS[1]
    budget = make_budget(BudgetConfig(1.0, round_to=1), pricer(1))
    used = np.arange(units.table.count) % 2 == 0
    score = used.astype(float)
    assert (select_union(score, budget, used) == used).all()


def test_nothing_is_cut_for_a_budget_of_one() -> None:
    units = UNITS[1]
    budget = make_budget(BudgetConfig(1.0, round_to=1), pricer(1))
    assert select_union(np.zeros(units.table.count), budget).all()


def test_the_refusal_names_the_smallest_budget() -> None:
    with pytest.raises(BudgetError, match=r"\[budget\] limit 1e-06 .* give at least 0\.\d+$"):
        make_budget(BudgetConfig(1e-6, round_to=1), pricer(0))


def test_a_narrow_network_is_told_of_a_smaller_multiple() -> None:
    with pytest.raises(
        BudgetError, match=r"\(round_to 8\) .*: set round_to = 1, or give at least 1$"
    ):
        make_budget(BudgetConfig(0.5), pricer(0))
    with pytest.raises(BudgetError, match=r"params: give at least [\d.]+$"):
        make_budget(BudgetConfig(1e-6), pricer(0))


def test_an_absolute_amount_is_taken_as_written() -> None:
    units = UNITS[0]
    budget = make_budget(BudgetConfig("0.3k", round_to=1), counted_pricer("params", units.table))
    assert budget.allowed == 300
    alive = select_union(np.random.rand(units.table.count), budget)
    assert units.table.params(alive) <= 300


@pytest.mark.parametrize(("limit", "told"), [("1G", True), ("0.3k", False), (1.0, False)])
def test_an_amount_that_cuts_nothing_is_told(limit: str | float, told: bool) -> None:
    config = BudgetConfig(limit, round_to=1)
    doubt = limit_doubt(config, make_budget(config, pricer(0)))
    assert bool(doubt) is told
    assert not told or "limit 1G cuts nothing: the whole network has" in doubt


@pytest.mark.parametrize("multiple", [2, 4])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_no_width_has_room_for_another_multiple(which: int, multiple: int) -> None:
    """The best unit may bring a multiple that costs too much: the others' still fit."""
    table, prices = UNITS[which].table, pricer(which, "macs")
    for seed in range(8):
        score = np.random.default_rng(seed).random(table.count)
        budget = make_budget(BudgetConfig(0.6, "macs", multiple), prices)
        alive = select_union(score, budget)
        assert prices.of(alive) <= budget.allowed
        for members in table.widths:
            off = members[~alive[members]]
            if len(off):
                more = alive.copy()
                more[off[0]] = True
                assert prices.of(table.round_up(more, multiple, score)) > budget.allowed


def test_the_floor_of_every_width_is_kept_before_anything_else() -> None:
    """One layer is worth nothing: without a floor it gets what is left."""
    table, prices = UNITS[1].table, pricer(1)
    score = np.random.default_rng(0).random(table.count) + 1
    least = table.widths[-1]
    score[least] *= 1e-6
    half = -(-len(least) // 2)
    kept = {}
    for floor in (0.0, 0.5):
        budget = make_budget(BudgetConfig(0.5, round_to=1, floor=floor), prices)
        alive = select_union(score, budget)
        assert prices.of(alive) <= budget.allowed
        kept[floor] = int(alive[least].sum())
    assert kept[0.0] < half == kept[0.5]
    # More than the limit allows: as much of it as fits.
    budget = make_budget(BudgetConfig(0.2, round_to=1, floor=1.0), prices)
    assert prices.of(select_union(score, budget)) <= budget.allowed
    with pytest.raises(ConfigError, match="floor"):
        BudgetConfig(0.5, floor=1.5)


@pytest.mark.parametrize("kind", ["params", "macs"])
def test_a_cost_above_the_backbones_is_told_as_it_is(kind: str) -> None:
    """Of adapters beside the trunk; it was told as all of the backbone."""
    config = BudgetConfig(0.9, kind, 1)  # type: ignore[arg-type]
    budget = make_budget(config, make_pricer(config, NETS[1]))
    account = budget_account(config, budget, 1.25 * budget.pricer.backbone)
    assert account.value == pytest.approx(1.25)
    assert not account.met
