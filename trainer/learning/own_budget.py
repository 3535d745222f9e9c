"""What a single domain may use of the union: its own budget, `[budget] own`, in MACs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from prunion.runtime.errors import ConfigError
from prunion.trainer.config import BudgetConfig, RunConfig
from prunion.trainer.cost import PricedBudget, counted_pricer, make_budget, select_union
from prunion.trainer.network import DomainNet

__all__ = ["check_own", "keep_switches", "own_budget", "own_shares", "thins_at_the_cut", "within"]


def thins_at_the_cut(config: RunConfig) -> bool:
    """Whether every domain gets its own budget at the cut, and settles with that."""
    return config.budget.own < 1 and not config.train.own_epochs


def own_budget(config: RunConfig, allowed: float) -> BudgetConfig:
    """The budget of a single domain, of `allowed` MACs."""
    return BudgetConfig(max(allowed, 1.5), "macs", config.budget.round_to)


def check_own(config: RunConfig, learns: bool) -> None:
    """Raise ConfigError if domains are thinned by what they learn, and they learn nothing."""
    if config.budget.own < 1 and config.train.own_epochs == 1:
        raise ConfigError("[train] own_epochs is 1: give 0, or 2 or more, of which one settles")
    if thins_at_the_cut(config) and not learns:
        raise ConfigError(
            f"[budget] own is {config.budget.own:g}, and its limit cuts nothing, so that no domain "
            "learns what it can do without: set [train] own_epochs = 3, or a lower limit"
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
    table, worth = net.units.table, scores.cpu().numpy()
    union, settled = (kept > 0).any(0).cpu().numpy(), False
    while not settled:  # what no domain takes is not in the file: then the share is of less
        allowed = own_budget(config, config.budget.own * table.macs(union))
        budget = make_budget(allowed, counted_pricer("macs", table), config.backbone.keep)
        rows = np.stack([within(budget, row, None, union) for row in worth])
        settled = bool((rows.any(0) == union).all())
        union = np.logical_or.reduce(rows)
    net.switches.copy_(torch.from_numpy(rows))


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
