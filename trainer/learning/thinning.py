"""The second part of a run whose domains have budgets of their own, within the union's channels."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import torch

from prunion.trainer.config import BudgetConfig, RunConfig
from prunion.trainer.cost import PricedBudget, counted_pricer, make_budget, select_union
from prunion.trainer.learning.training import Training
from prunion.trainer.processes import switch_device
from prunion.trainer.pruning import thin_recipe

__all__ = ["own_shares", "thinned"]

SETTLES = 3  # of so many of its epochs one settles; the others are the ramp


def thinned(training: Training) -> Training:
    """The run that thins every domain of a settled one, on the same network.

    The trunk and the union stay as they are; BatchNorm, heads and switches learn.

    Raises BudgetError if a domain cannot do with so little of the union.
    """
    net, table = training.net, training.net.units.table
    union = training.alive()
    whole = float(table.macs(union))
    config = _config(training.config, training.config.budget.own * whole)
    pricer = counted_pricer("macs", table)
    budget = make_budget(config.budget, pricer, training.config.backbone.keep)
    home = switch_device(net.switches.device)
    model = pricer.cost_model().to(home)
    part = whole / pricer.full

    def cost(kept: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = model(kept) / part
        return value

    def select(
        worth: np.ndarray, used: np.ndarray | None, share: float | None = None
    ) -> np.ndarray:
        return _within(budget, worth, used, union)

    recipe = thin_recipe(
        config.train,
        cost,
        select,
        torch.from_numpy(union).to(home),
        share=training.config.budget.own,
        domains=len(net.classes),
        steps_per_epoch=training.batches.steps_per_epoch,
    )
    training.shared.release()
    return Training(
        config,
        net,
        training.batches,
        budget,
        training.processes,
        recipe=recipe,
        origin=_digest(net.state_dict()),
    )


def own_shares(second: Training, own: float) -> dict[str, float]:
    """Each domain's MACs by its name, as a share of what the union had before it was thinned.

    Args:
        own: the share that a domain may have.
    """
    table, rows = second.net.units.table, (second.net.switches > 0).cpu().numpy()
    whole = second.budget.allowed / own
    names = [domain.name for domain in second.config.domains]
    return {name: table.macs(row) / whole for name, row in zip(names, rows, strict=True)}


def _within(
    budget: PricedBudget, worth: np.ndarray, used: np.ndarray | None, union: np.ndarray
) -> np.ndarray:
    """A domain's channels: rounding may only bring back what the union has."""
    lowest = np.where(union, worth, worth.min() - 1)
    kept: np.ndarray = select_union(lowest, budget, used) & union
    return kept


def _config(config: RunConfig, allowed: float) -> RunConfig:
    epochs = config.train.own_epochs
    settle = max(1, epochs // SETTLES)
    train = replace(
        config.train,
        recipe="prunion",
        trunk="frozen",
        trunk_from="start",
        lr=config.train.own_lr,
        warmup=0,
        ramp=epochs - settle,
        settle=settle,
        average=0.0,
        sharing="none",
        domain_budget=True,
        cut="domains",
        settle_with="own",
        drops="auto",
        head_optimiser="adamw",
        head_lr="auto",
    )
    budget = BudgetConfig(max(allowed, 1.5), "macs", config.budget.round_to)
    return replace(config, train=train, budget=budget)


def _digest(tensors: dict[str, torch.Tensor]) -> str:
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha.update(name.encode())
        sha.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()
