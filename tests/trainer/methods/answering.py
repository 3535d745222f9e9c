"""Weights to adapt, and what a network answers, for the tests of the methods."""

from __future__ import annotations

import torch

from prunion.trainer.network import DomainNet

__all__ = ["answers", "images", "shaken", "shared"]

ROWS = torch.tensor([0, 1, 1, 0])


def shared() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {"a.weight": torch.randn(4, 3, 3, 3), "b.weight": torch.randn(6, 4, 5, 5)}


def images() -> torch.Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def answers(net: DomainNet) -> torch.Tensor:
    with torch.no_grad():
        return net.eval().logits(images(), ROWS)


def shaken(module: torch.nn.Module) -> None:
    """Every number that learns away from where it starts."""
    torch.manual_seed(2)
    with torch.no_grad():
        for value in (p for p in module.parameters() if p.requires_grad):
            value.add_(0.3 * torch.randn_like(value))
