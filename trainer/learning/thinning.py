"""The second part of a run whose domains have budgets of their own, within the union's channels."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import torch

from prunion.trainer.config import BudgetConfig, RunConfig, TrainConfig
from prunion.trainer.cost import counted_pricer, make_budget
from prunion.trainer.learning.own_budget import own_budget
from prunion.trainer.learning.own_cover import within
from prunion.trainer.learning.training import Training
from prunion.trainer.processes import switch_device
from prunion.trainer.pruning import thin_recipe

__all__ = ["thinned"]

SETTLES = 3  # of so many of its epochs one settles; the others are the ramp


def thinned(training: Training) -> Training:
    """The run that thins every domain of a settled one, on the same network.

    The trunk and the union stay as they are; BatchNorm, heads and switches learn.
    """
    net, table = training.net, training.net.units.table
    union = training.alive()
    whole = float(table.macs(union))
    pricer = counted_pricer("macs", table)
    config = _config(training.config, own_budget(training.config, pricer, whole))
    budget = make_budget(config.budget, pricer)
    home = switch_device(net.switches.device)
    model = pricer.cost_model().to(home)
    part = whole / pricer.full

    def cost(kept: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = model(kept) / part
        return value

    def select(
        worth: np.ndarray, used: np.ndarray | None, share: float | None = None
    ) -> np.ndarray:
        return within(budget, worth, used, union)

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


def _config(config: RunConfig, budget: BudgetConfig) -> RunConfig:
    epochs = config.train.own_epochs
    settle = max(1, epochs // SETTLES)
    train = replace(
        config.train,
        own_epochs=0,
        recipe="prunion",
        trunk="frozen",
        trunk_lr=TrainConfig.trunk_lr,  # and all else that says nothing here
        trunk_optimiser=TrainConfig.trunk_optimiser,
        trunk_from="start",
        lr=config.train.own_lr,
        warmup=0,
        ramp=epochs - settle,
        settle=settle,
        average=0.0,
        sharing="none",
        sharing_weight="learned",
        domain_budget=True,
        cut="domains",
        settle_with="own",
        drops="auto",
        head_start="random",  # they are learned
        head_optimiser="adamw",
        head_lr="auto",
    )
    return replace(config, train=train, budget=budget)


def _digest(tensors: dict[str, torch.Tensor]) -> str:
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha.update(name.encode())
        sha.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()
