"""The budget as a promise: what is allowed, whether it can be met, and the union that meets it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from prunion.runtime.bundle import BudgetAccount
from prunion.runtime.errors import BudgetError
from prunion.trainer.config import BudgetConfig, BudgetKind
from prunion.trainer.cost.floor import floor_units
from prunion.trainer.cost.prices import Pricer
from prunion.trainer.methods import WeightAdapter

__all__ = [
    "PricedBudget",
    "budget_account",
    "check_floor",
    "least_allowed",
    "least_cost",
    "least_limit",
    "limit_doubt",
    "make_budget",
    "select_union",
    "shown_cost",
    "used_cost",
]

FINE = 0.001  # steps of the floor that a refusal names


@dataclass(frozen=True)
class PricedBudget:
    """A run file's budget, priced for one network.

    Attributes:
        pricer: what a union costs; says the unit too.
        full: the whole network's cost (`Pricer.full`).
        allowed: the most the exported file may cost, same unit.
        round_to: kept widths are rounded up to a multiple of this.
        floor: share of every width that is kept before anything else.
    """

    pricer: Pricer
    full: float
    allowed: float
    round_to: int
    floor: float = 0.0

    @property
    def share(self) -> float:
        """β: the allowed share of `full`, at most 1."""
        return min(1.0, self.allowed / self.full)


def make_budget(
    config: BudgetConfig, pricer: Pricer, keep: Sequence[str] = (), *, cuts: bool = True
) -> PricedBudget:
    """Price a budget by its pricer (`make_pricer`), refusing one that cannot be met.

    Args:
        keep: the layers that stay whole, for the message.
        cuts: whether the method removes channels to meet it; to others no width is too wide.

    Raises:
        BudgetError: even the narrowest network costs more; the message has the smallest budget.
            Or a profile was measured at other widths than those that `round_to` leads to.
    """
    profile = pricer.profile
    if profile is not None and config.round_to % profile.round_to:
        measured = profile.round_to
        raise BudgetError(
            f"[budget] round_to is {config.round_to}, the profile was measured at multiples of "
            f"{measured}: set round_to = {measured}, or profile with round_to = {config.round_to}"
        )
    full, backbone = pricer.full, pricer.backbone
    whole = config.is_fraction and config.amount == 1  # nothing is asked
    allowed = full if whole else config.allowed(backbone)
    if cuts and least_cost(config, pricer) > allowed:
        least = least_allowed(config, pricer)
        rules = f"round_to {config.round_to}"
        rules += f", floor {config.floor:g}" if config.floor else ""
        rules += f", own {config.own:g}" if least > least_cost(config, pricer, config.floor) else ""
        rules += f"; keep = {', '.join(keep)}" if keep else ""
        finer = _finest(config, pricer, allowed)
        raise BudgetError(
            f"[budget] limit {config.limit} allows {shown_cost(config.kind, allowed)}, but the "
            f"narrowest network ({rules}) needs {shown_cost(config.kind, least)}: {finer}give at "
            f"least {least_limit(config, least, backbone)}"
        )
    return PricedBudget(pricer, full, allowed, config.round_to, config.floor)


def _finest(config: BudgetConfig, pricer: Pricer, allowed: float) -> str:
    """Advice for networks whose layers are hardly wider than the multiple."""
    smallest = 1 if pricer.profile is None else pricer.profile.round_to
    if config.round_to <= smallest:
        return ""
    fits = least_allowed(replace(config, round_to=smallest), pricer) <= allowed
    return f"set round_to = {smallest}, or " if fits else ""


def limit_doubt(config: BudgetConfig, budget: PricedBudget) -> str:
    """What to say of an amount that the whole network keeps to, a slip of its unit or its kind."""
    if config.is_fraction or budget.allowed < budget.full:
        return ""
    whole = shown_cost(config.kind, budget.full)
    return f"[budget] limit {config.limit} cuts nothing: the whole network has {whole}"


def check_floor(config: BudgetConfig, budget: PricedBudget) -> None:
    """Raise BudgetError if what `floor` keeps of every width costs more than the limit allows."""
    pricer, least = budget.pricer, least_cost(config, budget.pricer, config.floor)
    if not config.floor or least <= budget.allowed:
        return
    fits, over = 0.0, config.floor
    while over - fits > FINE:
        middle = (fits + over) / 2
        within = least_cost(config, pricer, middle) <= budget.allowed
        fits, over = (middle, over) if within else (fits, middle)
    enough = least_allowed(config, pricer)
    raise BudgetError(
        f"[budget] floor is {config.floor:g}: so much of every width (round_to {config.round_to}) "
        f"costs {shown_cost(config.kind, least)}, and limit {config.limit} allows "
        f"{shown_cost(config.kind, budget.allowed)}: set floor = {int(fits / FINE) * FINE:.3g} or "
        f"less, or a limit of at least {least_limit(config, enough, pricer.backbone)}"
    )


def least_allowed(config: BudgetConfig, pricer: Pricer) -> float:
    """The least that a run must allow for every check of its budget to pass, where any would do.

    `floor` is kept, and of a limit in MACs the narrowest network is no more than a domain's `own`.
    """
    least = least_cost(config, pricer, config.floor)
    if config.kind != "macs" or config.own == 1:
        return least
    narrowest = least_cost(config, pricer)  # no adapters: a run has none beside `own`
    union = np.ceil(narrowest / config.own)
    union += union * config.own < narrowest  # what a division leaves
    return max(least, float(union)) if union <= pricer.full else least


def least_cost(config: BudgetConfig, pricer: Pricer, floor: float = 0.0) -> float:
    """What the narrowest network costs, its widths rounded up as `config` says.

    `floor` is the share of every width that it keeps at least.
    """
    units = pricer.units
    fewest = floor_units(units, floor, np.zeros(units.count))
    return pricer.of(units.round_up(fewest, config.round_to))


def least_limit(config: BudgetConfig, least: float, backbone: float) -> str:
    """The smallest limit that can be met, as this run file writes limits."""
    if config.is_fraction:
        return f"{min(1.0, np.ceil(least / backbone * 1e4) / 1e4):g}"
    return f'"{np.ceil(least * 1e6) / 1e6:.6f}ms"' if config.kind == "latency" else f"{least:.0f}"


def select_union(
    score: np.ndarray, budget: PricedBudget, used: np.ndarray | None = None
) -> np.ndarray:
    """Keep as many of the highest-scored units as the budget allows, rounding included.

    Where the next unit would bring a whole multiple that costs too much, widths whose multiple
    still fits get theirs, the highest score first.

    Every width keeps at least one unit (`round_to` of them where it has so many). The best of
    every width, `floor` of it, are kept before any others, used or not.

    Args:
        score: worth of each unit `[U]`; higher is kept first.
        used: units to choose from `[U]` bool; without it also unused ones fill the budget. Beyond
            them only `floor` and rounding keep any, and these last of their width.

    Returns:
        `[U]` bool, of cost at most `budget.allowed`.
    """
    pricer = budget.pricer
    order = np.argsort(-score, kind="stable")
    first = floor_units(pricer.units, budget.floor, score, used)
    others = ~first if used is None else used & ~first
    order = np.concatenate([order[first[order]], order[others[order]]])

    def best(count: int) -> np.ndarray:
        alive = np.zeros(len(score), dtype=bool)
        alive[order[:count]] = True
        return pricer.units.round_up(alive, budget.round_to, score)

    low, high = 0, len(order)  # best(low) fits: make_budget saw to it
    while low < high:
        middle = (low + high + 1) // 2
        if pricer.of(best(middle)) <= budget.allowed:
            low = middle
        else:
            high = middle - 1
    return best(low) if budget.round_to == 1 else _filled(best(low), order[low:], score, budget)


def _filled(
    alive: np.ndarray, order: np.ndarray, score: np.ndarray, budget: PricedBudget
) -> np.ndarray:
    """More multiples of the widths that are cheap enough; `order` are the units to try."""
    table = budget.pricer.units
    width = {int(unit): number for number, x in enumerate(table.widths) for unit in x}
    full: set[int] = set()  # widths whose next multiple is too much, and will be
    for unit in order.tolist():
        if alive[unit] or width[unit] in full:
            continue
        more = alive.copy()
        more[unit] = True
        more = table.round_up(more, budget.round_to, score)
        if budget.pricer.of(more) <= budget.allowed:
            alive = more
        else:
            full.add(width[unit])
    return alive


def used_cost(pricer: Pricer, alive: np.ndarray, adapter: WeightAdapter | None) -> float:
    """What a budget counts of a network that keeps `alive` `[U]` bool: of slices those in use."""
    unused = 0 if adapter is None else adapter.unused_weights(pricer.units, alive)
    return pricer.of(alive) - unused


def budget_account(
    config: BudgetConfig, budget: PricedBudget, cost: float, *, slices: bool = False
) -> BudgetAccount:
    """What was asked and what it costs, for a result and for a manifest (docs/formats.md).

    `slices` tells that the cost is of single slices in use, and not of all that the graph holds.
    """
    backbone, profile = budget.pricer.backbone, budget.pricer.profile
    share = cost / backbone
    if config.kind == "bytes":  # counted from above, so the whole network may seem to be more
        share = min(1.0, share)
    account = BudgetAccount(
        kind=budget.pricer.kind,
        asked=config.limit,
        value=share if config.is_fraction else cost,
        met=bool(cost <= budget.allowed),
        backbone=backbone,
        slices=slices,
    )
    if profile is not None:
        device = profile.describe()
        return replace(account, milliseconds=cost, share=cost / budget.full, device=device)
    return account


def shown_cost(kind: BudgetKind, cost: float) -> str:
    """A cost with its unit, for messages."""
    return f"{cost:.4g} ms" if kind == "latency" else f"{cost:,.0f} {kind}"
