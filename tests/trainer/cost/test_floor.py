"""The share of every width that stays, whatever else decides what is kept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from prunion.runtime.errors import BudgetError
from prunion.trainer.config import (
    BackboneConfig,
    BudgetConfig,
    DomainConfig,
    RunConfig,
    TrainConfig,
)
from prunion.trainer.cost import (
    check_floor,
    floor_account,
    floor_units,
    make_budget,
    make_pricer,
    select_union,
)
from prunion.trainer.run.start import check_budget
from tests.support.networks.small import Plain, Residual, domain_net

NETS = [domain_net(model()) for model in (Plain, Residual)]


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("limit", [1.0, 0.6])
def test_units_that_nobody_uses_make_up_the_floor(which: int, limit: float) -> None:
    """Where unused units may not fill the budget the floor did nothing."""
    table = NETS[which].units.table
    prices = make_pricer(BudgetConfig(1.0), NETS[which])
    budget = make_budget(BudgetConfig(limit, round_to=1, floor=0.5), prices)
    score = np.random.default_rng(0).random(table.count)
    used = np.zeros(table.count, bool)
    used[table.widths[0]] = True
    used[table.widths[-1][0]] = True
    score[table.widths[-1][0]] = -1  # used, if worth least: it comes before those that nobody uses
    kept = select_union(score, budget, used)
    assert prices.of(kept) <= budget.allowed
    for members in table.widths:
        least = -(-len(members) // 2)
        assert kept[members].sum() >= least
        if not used[members].all():
            assert kept[members].sum() == least, "no more of what nobody uses"
    assert kept[table.widths[-1][0]]


@pytest.mark.parametrize("multiple", [1, 2])
@pytest.mark.parametrize("kind", ["params", "macs"])
def test_a_floor_that_costs_more_than_the_limit_is_refused(kind: str, multiple: int) -> None:
    prices = make_pricer(BudgetConfig(1.0, kind), NETS[1])  # type: ignore[arg-type]

    def checked(floor: float, limit: float) -> None:
        config = BudgetConfig(limit, kind, multiple, floor=floor)  # type: ignore[arg-type]
        check_floor(config, make_budget(config, prices))

    with pytest.raises(BudgetError, match=r"\[budget\] floor is 0\.9: .* limit 0\.5") as refused:
        checked(0.9, 0.5)
    told = str(refused.value)
    lower = float(told.split("set floor = ")[1].split()[0])
    higher = float(told.rsplit("at least ", 1)[1])
    checked(lower, 0.5)
    checked(0.9, higher)
    for floor, limit in ((lower + 0.002, 0.5), (0.9, higher - 2e-4)):
        with pytest.raises(BudgetError, match="floor"):
            checked(floor, limit)
    checked(0.0, 0.5)


@pytest.mark.parametrize("kind", ["params", "macs", "bytes", "switches"])
@pytest.mark.parametrize("rules", [{"floor": 0.3}, {"own": 0.4}, {"floor": 0.3, "own": 0.9}])
def test_the_first_refusal_names_a_limit_that_every_check_takes(
    kind: str, rules: dict[str, float]
) -> None:
    """A limit below the narrowest network's was refused with one that `floor` or `own` refused."""
    config = RunConfig(
        backbone=BackboneConfig("resnet18"),
        budget=BudgetConfig(1e-4, kind, 2, **rules),  # type: ignore[arg-type]
        train=TrainConfig(own_epochs=3 if "own" in rules else 0),
        domains=tuple(DomainConfig(x, train=(x,), test=(x,)) for x in "ab"),
    )
    prices = make_pricer(config.budget, NETS[1])
    with pytest.raises(BudgetError, match="but the narrowest network") as refused:
        make_budget(config.budget, prices)
    limit = float(str(refused.value).rsplit("at least ", 1)[1])
    told = replace(config, budget=replace(config.budget, limit=limit))
    check_budget(told, NETS[1], make_budget(told.budget, prices))
    if rules.get("own") == 0.4:  # only of MACs does a domain's share depend on the limit
        assert ("own 0.4" in str(refused.value)) is (kind == "macs")
    lower = replace(config, budget=replace(config.budget, limit=max(limit - 2e-4, 1e-9)))
    with pytest.raises(BudgetError):
        check_budget(lower, NETS[1], make_budget(lower.budget, prices))


def test_a_smaller_multiple_is_told_where_the_floor_fits_it_too() -> None:
    prices = make_pricer(BudgetConfig(1.0), NETS[1])
    least = float(prices.of(np.zeros(prices.units.count, bool))) / prices.full
    told = {}
    for floor in (0.0, 0.9):
        with pytest.raises(BudgetError, match="but the narrowest network") as refused:
            make_budget(BudgetConfig(least + 0.3, round_to=8, floor=floor), prices)
        told[floor] = "set round_to = 1" in str(refused.value)
    assert told == {0.0: True, 0.9: False}


def test_an_account_names_the_narrowest_layer() -> None:
    table = NETS[0].units.table
    alive = np.ones(table.count, bool)
    assert floor_account(table, 1.0, alive)["met"] is True
    alive[table.widths[-1][1:]] = False
    account = floor_account(table, 0.5, alive)
    assert (account["asked"], account["met"]) == (0.5, False)
    assert account["least"] == 1 / len(table.widths[-1])
    layer = next(x for x in table.layers if x.weight == account["layer"] + ".weight")
    assert np.isin(table.widths[-1], table.slots[layer.weight, 0]).all()


def test_a_share_is_counted_as_it_is_written() -> None:
    """0.28 · 25 is 7.000000000000001 to a computer."""
    table = NETS[0].units.table
    for members in table.widths:
        for count in range(1, len(members) + 1):
            share = round(count / len(members), 12)
            assert floor_units(table, share, np.zeros(table.count))[members].sum() == count
