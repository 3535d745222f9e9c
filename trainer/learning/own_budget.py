"""What a single domain may use of the union: its own budget, `[budget] own`, in MACs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from prunion.runtime.errors import BudgetError, ConfigError
from prunion.trainer.config import BudgetConfig, RunConfig
from prunion.trainer.cost import (
    PricedBudget,
    counted_pricer,
    least_cost,
    make_budget,
    select_union,
)
from prunion.trainer.network import DomainNet

__all__ = [
    "check_own",
    "check_reachable",
    "keep_switches",
    "own_budget",
    "own_shares",
    "thins_at_the_cut",
    "within",
]

ROUNDS = 16  # each gives what is left to some domain, which may let go of something else


def thins_at_the_cut(config: RunConfig) -> bool:
    """Whether every domain gets its own budget at the cut, and settles with that."""
    return config.budget.own < 1 and not config.train.own_epochs


def own_budget(config: RunConfig, allowed: float) -> BudgetConfig:
    """The budget of a single domain, of `allowed` MACs."""
    return BudgetConfig(
        max(allowed, 1.5), "macs", config.budget.round_to, floor=config.budget.floor
    )


def check_own(config: RunConfig, learns: bool) -> None:
    """Raise ConfigError if domains are to be thinned by what they learn, and they learn nothing."""
    own, train = config.budget.own, config.train
    if own < 1 and train.own_epochs == 1:
        raise ConfigError("[train] own_epochs is 1: give 0, or 2 or more, of which one settles")
    if not thins_at_the_cut(config):
        return
    why = ""
    if len(config.domains) == 1:
        why = "there is one domain, whose channels are the union: set a lower limit"
    elif not learns:
        why = "its limit cuts nothing: set a lower one"
    elif train.recipe != "prunion":
        why = f'[train] recipe is "{train.recipe}", which learns no switches: set "prunion"'
    if why:
        raise ConfigError(
            f"[budget] own is {own:g}, of what each domain learns to want most, and {why}, or "
            "[train] own_epochs = 3, which thins after settling"
        )


def check_reachable(config: RunConfig, net: DomainNet, budget: PricedBudget) -> None:
    """Raise BudgetError before a run if no domain could ever do with its own budget.

    The union is not known yet, only the most MACs that it can have: the narrowest network must do
    with their share. What the cut leaves may be less, and is asked again then.
    """
    own, table = config.budget.own, net.units.table
    if own == 1:
        return
    pricer = counted_pricer("macs", table)
    most = min(pricer.full, budget.allowed) if config.budget.kind == "macs" else pricer.full
    least = least_cost(own_budget(config, own * most), pricer)
    if least <= own * most:
        return
    where = f"set own = {min(1.0, np.ceil(least / most * 1e4) / 1e4):g} or more"
    raise BudgetError(
        f"[budget] own is {own:g}: of the {int(most):,} MACs that all domains can have together it "
        f"allows {int(own * most):,}, but the narrowest network (round_to {config.budget.round_to})"
        f" needs {int(least):,}: {where}, or a lower round_to"
    )


def keep_switches(
    net: DomainNet, kept: torch.Tensor, config: RunConfig, scores: torch.Tensor
) -> None:
    """Give the network the switches of the cut; where it is thinned there, each domain its own.

    Args:
        kept: 0/1 of every domain and unit, `[D, U]`.
        scores: what each domain learned of each unit, `[D, U]`; of the union the highest are its.

    Raises BudgetError if a domain cannot do with so little of the union.
    """
    net.switches.copy_(kept)
    if not thins_at_the_cut(config):
        return
    table, union = net.units.table, (kept > 0).any(0).cpu().numpy()
    allowed = own_budget(config, config.budget.own * table.macs(union))
    try:
        budget = make_budget(allowed, counted_pricer("macs", table), config.backbone.keep)
    except BudgetError:
        raise BudgetError(
            f"[budget] own is {config.budget.own:g}, and of the union that the cut left no domain "
            "can do with so little: set a higher own, or a lower round_to or floor"
        ) from None
    rows = _shared_out(budget, scores.cpu().double().numpy(), union)
    net.switches.copy_(torch.from_numpy(rows))


def _shared_out(budget: PricedBudget, worth: np.ndarray, union: np.ndarray) -> np.ndarray:
    """What each domain keeps of the union, `[D, U]` bool, so that each unit is kept by one.

    A unit that no domain would keep goes first with the one that ranks it highest: it is paid for.
    """
    ranks = worth[:, union].argsort(1).argsort(1)
    keepers = np.full(len(union), -1)
    keepers[union] = ranks.argmax(0)
    first = np.zeros_like(worth, bool)
    above = 1 + worth.max() - worth.min()
    for _ in range(ROUNDS):
        raised = worth + above * first
        rows = np.stack([within(budget, row, None, union) for row in raised])
        left = union & ~rows.any(0)
        if not left.any():
            break
        first |= left & (keepers == np.arange(len(worth))[:, None])
    return rows


def within(
    budget: PricedBudget, worth: np.ndarray, used: np.ndarray | None, union: np.ndarray
) -> np.ndarray:
    """A domain's channels: rounding may only bring back what the union has."""
    lowest = np.where(union, worth, worth.min() - 1)
    kept: np.ndarray = select_union(lowest, budget, used) & union
    return kept


def own_shares(
    net: DomainNet, names: Sequence[str], whole: float | None = None
) -> dict[str, float]:
    """Each domain's MACs by its name, as a share of `whole`, by default the union's."""
    table, rows = net.units.table, (net.switches > 0).cpu().numpy()
    if whole is None:
        whole = table.macs((net.switches > 0).any(0).cpu().numpy())
    return {name: table.macs(row) / whole for name, row in zip(names, rows, strict=True)}
