"""The second part of a run whose domains have budgets of their own, within the union's channels."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import torch

from prunion.trainer.cost import counted_pricer, make_budget
from prunion.trainer.learning.own import own_budget, thinned_train, within
from prunion.trainer.learning.training import Training
from prunion.trainer.processes import switch_device
from prunion.trainer.pruning import thin_recipe

__all__ = ["make_thinning"]


def make_thinning(training: Training) -> Training:
    """The run that thins every domain of a settled one, on the same network.

    The trunk and the union stay as they are; BatchNorm, heads and switches learn.
    """
    net, table = training.net, training.net.units.table
    union = training.alive()
    whole = float(table.macs(union))
    pricer = counted_pricer("macs", table)
    own = own_budget(training.config, pricer, whole)
    config = replace(training.config, train=thinned_train(training.config.train), budget=own)
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
    training.thinned = True  # what it tells of sharing is then of what they choose now
    return Training(
        config,
        net,
        training.batches,
        budget,
        training.processes,
        recipe=recipe,
        origin=_digest(net.state_dict()),
    )


def _digest(tensors: dict[str, torch.Tensor]) -> str:
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha.update(name.encode())
        sha.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()
