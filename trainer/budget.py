"""The budget as a promise: what is allowed, whether it can be met, and the cut that meets it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prunion.runtime.errors import BudgetError
from prunion.runtime.unit_table import UnitTable
from prunion.trainer.config import BudgetConfig

__all__ = ["Budget", "cost_of", "make_budget", "round_up", "select_union"]


@dataclass(frozen=True)
class Budget:
    """A budget resolved against one backbone.

    Attributes:
        kind: `params`, `macs`, `bytes` or `switches`.
        full: the backbone's cost.
        allowed: the most the exported file may cost, same unit.
        round_to: kept widths are rounded up to a multiple of this.
    """

    kind: str
    full: float
    allowed: float
    round_to: int

    @property
    def share(self) -> float:
        """β: the allowed share of the backbone's cost, at most 1."""
        return min(1.0, self.allowed / self.full)


def make_budget(config: BudgetConfig, table: UnitTable, group: np.ndarray) -> Budget:
    """Resolve a budget against a `priced_table`, refusing one that cannot be met.

    Raises:
        BudgetError: even the narrowest network costs more; the message has the smallest budget.
    """
    full = cost_of(table, config.kind, np.ones(table.count, dtype=bool))
    allowed = config.allowed(full)
    narrowest = round_up(_one_per_group(group, np.zeros(table.count)), group, config.round_to)
    least = cost_of(table, config.kind, narrowest)
    if least > allowed:
        raise BudgetError(
            f"[budget] limit {config.limit} allows {allowed:,.0f} {config.kind}, but the narrowest "
            f"network (round_to {config.round_to}) needs {least:,.0f}: give at least "
            f"{np.ceil(least / full * 1e4) / 1e4:g}"
        )
    return Budget(config.kind, full, allowed, config.round_to)


def cost_of(table: UnitTable, kind: str, alive: np.ndarray) -> int:
    """Cost of keeping `alive` `[U]` bool by a `priced_table`; exact, an upper bound for bytes."""
    return table.params(alive) if kind == "params" else table.macs(alive)


def select_union(
    score: np.ndarray,
    table: UnitTable,
    group: np.ndarray,
    budget: Budget,
    used: np.ndarray | None = None,
) -> np.ndarray:
    """Keep as many of the highest-scored units as the budget allows, rounding included.

    Every group keeps at least one unit (`round_to` of them where it has so many).

    Args:
        score: worth of each unit `[U]`; higher is kept first.
        group: width each unit belongs to `[U]`.
        used: units to choose from `[U]` bool; without it also unused ones fill the budget.

    Returns:
        `[U]` bool, of cost at most `budget.allowed`.
    """
    order = np.argsort(-score, kind="stable")
    order = order if used is None else order[used[order]]
    floor = _one_per_group(group, score)

    def keep(count: int) -> np.ndarray:
        alive = floor.copy()
        alive[order[:count]] = True
        return round_up(alive, group, budget.round_to, score)

    low, high = 0, len(order)  # keep(low) fits: make_budget saw to it
    while low < high:
        middle = (low + high + 1) // 2
        if cost_of(table, budget.kind, keep(middle)) <= budget.allowed:
            low = middle
        else:
            high = middle - 1
    return keep(low)


def round_up(
    alive: np.ndarray, group: np.ndarray, multiple: int, score: np.ndarray | None = None
) -> np.ndarray:
    """Bring back each group's best units until its width is a multiple of `multiple`."""
    if multiple == 1:
        return alive
    alive = alive.copy()
    score = np.zeros(len(alive)) if score is None else score
    for members in _members(group):
        kept = int(alive[members].sum())
        missing = min(-(-kept // multiple) * multiple, len(members)) - kept
        off = members[~alive[members]]
        best = off[np.argsort(-score[off], kind="stable")[:missing]]
        alive[best] = True
    return alive


def _one_per_group(group: np.ndarray, score: np.ndarray) -> np.ndarray:
    alive = np.zeros(len(group), dtype=bool)
    for members in _members(group):
        alive[members[np.argmax(score[members])]] = True
    return alive


def _members(group: np.ndarray) -> list[np.ndarray]:
    order = np.argsort(group, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(group[order])) + 1) if len(group) else []
