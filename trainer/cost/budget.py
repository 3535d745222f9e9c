"""The budget as a promise: what is allowed, whether it can be met, and the cut that meets it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from prunion.runtime.bundle.manifest import BudgetAccount
from prunion.runtime.bundle.unit_table import UnitTable
from prunion.runtime.errors import BudgetError
from prunion.trainer.config.run import BudgetConfig
from prunion.trainer.cost.latency import LatencyTable
from prunion.trainer.cost.prices import bound_beyond

__all__ = [
    "Budget",
    "Priced",
    "budget_account",
    "cost_of",
    "make_budget",
    "round_up",
    "select_union",
    "shown_cost",
]

Priced = UnitTable | LatencyTable


@dataclass(frozen=True)
class Budget:
    """A budget resolved against one backbone.

    Attributes:
        kind: `params`, `macs`, `bytes`, `switches` or `latency` (in milliseconds).
        full: the backbone's cost as training counts it; for bytes an upper bound.
        backbone: what a share is a share of: the same, but of bytes the tensors alone, so that
            half of it is never more than half of the whole network's file.
        allowed: the most the exported file may cost, same unit.
        round_to: kept widths are rounded up to a multiple of this.
    """

    kind: str
    full: float
    backbone: float
    allowed: float
    round_to: int

    @property
    def share(self) -> float:
        """β: the allowed share of `full`, at most 1."""
        return min(1.0, self.allowed / self.full)


def make_budget(
    config: BudgetConfig, table: Priced, group: np.ndarray, keep: Sequence[str] = ()
) -> Budget:
    """Resolve a budget against its table (`table_of`), refusing one that cannot be met.

    `keep` are the layers that stay whole, for the message.

    Raises:
        BudgetError: even the narrowest network costs more; the message has the smallest budget.
            Or a profile was measured at other widths than those that `round_to` leads to.
    """
    if isinstance(table, LatencyTable) and config.round_to % table.profile.round_to:
        measured = table.profile.round_to
        raise BudgetError(
            f"[budget] round_to is {config.round_to}, the profile was measured at multiples of "
            f"{measured}: set round_to = {measured}, or profile with round_to = {config.round_to}"
        )
    full = cost_of(table, config.kind, np.ones(table.count, dtype=bool))
    backbone = full - bound_beyond(table)
    whole = config.is_fraction and config.amount == 1  # nothing is asked
    allowed = full if whole else config.allowed(backbone)
    narrowest = round_up(_one_per_group(group, np.zeros(table.count)), group, config.round_to)
    least = cost_of(table, config.kind, narrowest)
    if least > allowed:
        whole_layers = f"; keep = {', '.join(keep)}" if keep else ""
        raise BudgetError(
            f"[budget] limit {config.limit} allows {shown_cost(config.kind, allowed)}, but the "
            f"narrowest network (round_to {config.round_to}{whole_layers}) needs "
            f"{shown_cost(config.kind, least)}: give at least "
            f"{_least_limit(config, least, backbone)}"
        )
    return Budget(config.kind, full, backbone, allowed, config.round_to)


def cost_of(table: Priced, kind: str, alive: np.ndarray) -> float:
    """Cost of keeping `alive` `[U]` bool: exact; a bound for bytes, predicted for latency."""
    if isinstance(table, LatencyTable):
        return table.milliseconds(alive)
    return table.params(alive) if kind == "params" else table.macs(alive)


def budget_account(
    config: BudgetConfig, budget: Budget, table: Priced, cost: float
) -> BudgetAccount:
    """What was asked and what it costs, for a result and for a manifest (docs/formats.md)."""
    account = BudgetAccount(
        kind=budget.kind,
        asked=config.limit,
        value=min(1.0, cost / budget.backbone) if config.is_fraction else cost,
        met=bool(cost <= budget.allowed),
        backbone=budget.backbone,
    )
    if isinstance(table, LatencyTable):
        device = table.profile.describe()
        return replace(account, milliseconds=cost, share=cost / budget.full, device=device)
    return account


def _least_limit(config: BudgetConfig, least: float, backbone: float) -> str:
    """The smallest limit that can be met, as this run file writes limits."""
    if config.is_fraction:
        return f"{min(1.0, np.ceil(least / backbone * 1e4) / 1e4):g}"
    return f'"{np.ceil(least * 1e6) / 1e6:.6f}ms"' if config.kind == "latency" else f"{least:.0f}"


def shown_cost(kind: str, cost: float) -> str:
    """A cost with its unit, for messages."""
    return f"{cost:.4g} ms" if kind == "latency" else f"{cost:,.0f} {kind}"


def select_union(
    score: np.ndarray,
    table: Priced,
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
