"""What dos Santos, Berriel, Oliveira-Santos, Sebe and Almeida 2023, "Budget-Aware Pruning: Handling
Multiple Domains with Less Parameters", arXiv:2309.11464, charge switches for: eqs. 6 to 9, and λ.

Switches of channels and of single slices learn by the same equations; what differs is what costs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from prunion.trainer.config import SharingLoss

__all__ = [
    "LARGEST_LAMBDA",
    "NOTHING",
    "PAPER_LAMBDA",
    "PAPER_RATE",
    "Multiplier",
    "intersection",
    "loss_of_sharing",
    "union",
]

# The paper's λ: its start, and how far it moves in a step by a violation as large as β. It is slow:
# under a fast one, all its switches would go off at once.
PAPER_LAMBDA, PAPER_RATE = 1.0, 0.05
LARGEST_LAMBDA = 50.0
NOTHING = 1e-9  # stands for the cost of an empty union, which eq. 9 divides by


@dataclass
class Multiplier:
    """λ of one inequality constraint, by dual ascent.

    λ grows while the constraint is violated, shrinks while it holds, stays in 0 … `largest`,
    and counts as 0 while the constraint holds (eq. 4's KKT condition).
    """

    rate: float = PAPER_RATE
    largest: float = LARGEST_LAMBDA
    value: float = 0.0

    def update(self, violation: float) -> float:
        """Take one step of dual ascent and return the multiplier to use now."""
        self.value = min(max(self.value + self.rate * violation, 0.0), self.largest)
        return self.value if violation > 0 else 0.0


def union(switches: torch.Tensor) -> torch.Tensor:
    """Soft or hard union over domains: `[D, U]` → `[U]` (eq. 8, folded over all domains)."""
    return 1 - (1 - switches).prod(dim=0)


def intersection(switches: torch.Tensor) -> torch.Tensor:
    """Soft or hard intersection over domains: `[D, U]` → `[U]`."""
    return switches.prod(dim=0)


def loss_of_sharing(
    kind: SharingLoss,
    cost: Callable[[Callable[[torch.Tensor], torch.Tensor]], torch.Tensor],
    beta: float,
    whole: float = 1.0,
) -> torch.Tensor:
    """The sharing loss before its weight λ and before max(0, ·), a differentiable scalar.

    Args:
        kind: `union` (eq. 7), `intersection` (eq. 6) or `jaccard` (eq. 9, which ignores `beta`).
        cost: of what all domains have together, by the `union` or the `intersection` of it.
        whole: what everything costs; 1 where `cost` is a share of it.
    """
    if kind == "union":
        return cost(union) / whole - beta
    common = cost(intersection)
    if kind == "intersection":
        return 1 - common / whole / beta
    return 1 - common / cost(union).clamp(min=NOTHING)
