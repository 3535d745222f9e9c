"""Which domain keeps what of the union, so that all of it stays with some domain.

A domain's budget is of MACs, and a layer's are the product of its widths: D domains that share
every width out evenly need about 1/D² of the union's MACs each, and less where they divide the
layers unevenly. So no simple bound tells beforehand which unions can be covered.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from prunion.runtime.bundle import UnitTable
from prunion.trainer.cost import PricedBudget, select_union

__all__ = ["even_costs", "shared_out", "within"]

ROUNDS = 16  # each gives what is left to some domain, which may let go of something else


def shared_out(budget: PricedBudget, worth: np.ndarray, union: np.ndarray) -> np.ndarray:
    """What each domain keeps of the union, `[D, U]` bool, so that each unit is kept by one.

    Every domain keeps the budget's floor of each width and then what it wants most, as far as its
    budget goes; a unit that no domain would keep goes first with the one that ranks it highest: it
    is paid for. Where the domains cannot cover the union so, every width is shared out evenly
    first, before the floor. A domain whose even share alone costs more than the budget keeps it all
    the same: the budget is then not met.

    Args:
        budget: of a single domain.
        worth: of each unit to each domain, `[D, U]`.
        union: units that the network keeps, `[U]` bool.
    """
    ranks = worth[:, union].argsort(1).argsort(1)
    keepers = np.full(len(union), -1)
    keepers[union] = ranks.argmax(0)
    first = np.zeros_like(worth, bool)
    for _ in range(ROUNDS):
        rows = np.stack([within(budget, row, None, union) for row in _raised(worth, first)])
        left = union & ~rows.any(0)
        if not left.any():
            return rows
        first |= left & (keepers == np.arange(len(worth))[:, None])
    shares = _even(budget.pricer.units, worth, union, budget.round_to)
    raised = _raised(worth, shares)
    costs = _costs(budget, raised, shares)
    budgets = [replace(budget, allowed=max(budget.allowed, cost), floor=0.0) for cost in costs]
    return np.stack([within(b, row, None, union) for b, row in zip(budgets, raised, strict=True)])


def even_costs(budget: PricedBudget, domains: int) -> list[float]:
    """What each domain costs where all units are kept and every width is shared out evenly."""
    union = np.ones(budget.pricer.units.count, bool)
    worth = np.zeros((domains, len(union)))
    shares = _even(budget.pricer.units, worth, union, budget.round_to)
    return _costs(budget, _raised(worth, shares), shares)


def within(
    budget: PricedBudget, worth: np.ndarray, used: np.ndarray | None, union: np.ndarray
) -> np.ndarray:
    """A domain's channels: rounding may only bring back what the union has."""
    lowest = np.where(union, worth, worth.min() - 1)
    kept: np.ndarray = select_union(lowest, budget, used) & union
    return kept


def _raised(worth: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Worths with `first` `[D, U]` above all others, in their own order."""
    raised: np.ndarray = worth + (1 + worth.max() - worth.min()) * first
    return raised


def _costs(budget: PricedBudget, raised: np.ndarray, shares: np.ndarray) -> list[float]:
    """Of each domain's share, its widths rounded up."""
    pricer, multiple = budget.pricer, budget.round_to
    return [
        pricer.of(pricer.units.round_up(share, multiple, row))
        for share, row in zip(shares, raised, strict=True)
    ]


def _even(table: UnitTable, worth: np.ndarray, union: np.ndarray, multiple: int) -> np.ndarray:
    """Every width's units shared out in equal multiples, each to who ranks it highest, `[D, U]`."""
    domains = len(worth)
    shares = np.zeros(worth.shape, bool)
    for members in table.widths:
        units = members[union[members]]
        each = -(-len(units) // (domains * multiple)) * multiple
        room, ranks = np.full(domains, each), worth[:, units].argsort(1).argsort(1)
        taken = np.zeros(len(units), bool)
        for place in np.argsort(-ranks, axis=None, kind="stable").tolist():
            domain, unit = divmod(place, len(units))
            if room[domain] and not taken[unit]:
                shares[domain, units[unit]] = taken[unit] = True
                room[domain] -= 1
    return shares
