"""Which parameters learn, how fast, and what pulls them back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from prunion.trainer.config import TrainConfig
from prunion.trainer.network import DomainNet

__all__ = ["make_optimiser", "set_rates", "trunk_parameters"]


def make_optimiser(
    train: TrainConfig, net: DomainNet, images: Sequence[int] = ()
) -> torch.optim.AdamW:
    """AdamW over BatchNorm, heads and (where the run tunes it) the trunk; switches apart.

    Args:
        images: training images of each domain. `small_set_decay` pulls a domain's head to zero in
            proportion to how few it has; the smallest domain feels all of it.
    """
    trunk = trunk_parameters(net)
    for parameter in trunk:
        parameter.requires_grad_(train.trunk == "tuned")
    norms = [p for m in net.norms.values() for p in m.parameters()]
    groups: list[dict[str, Any]] = [{"params": norms, "peak": train.own_lr, "weight_decay": 0.0}]
    for domain, head in enumerate(net.heads):
        few = min(images) / images[domain] if images else 0.0
        decay = train.weight_decay + train.small_set_decay * few
        groups.append(
            {"params": list(head.parameters()), "peak": train.own_lr, "weight_decay": decay}
        )
    if train.trunk == "tuned":
        decay = train.weight_decay
        groups.append({"params": trunk, "peak": train.trunk_lr, "weight_decay": decay})
    for group in groups:
        group["lr"] = group["peak"]
    # On a GPU one kernel a group instead of a dozen.
    return torch.optim.AdamW(groups, fused=True if net.switches.is_cuda else None)


def set_rates(optimiser: torch.optim.Optimizer, factor: float) -> None:
    """Every group's learning rate as a share of its own peak."""
    for group in optimiser.param_groups:
        group["lr"] = group["peak"] * factor


def trunk_parameters(net: DomainNet) -> list[nn.Parameter]:
    """What all domains share: everything in the trunk but the BatchNorms."""
    own = {id(p) for m in net.norms.values() for p in m.parameters()}
    return [p for p in net.trunk.parameters() if id(p) not in own]
