"""Union of the domains' switches, its price per domain, and the multiplier that enforces it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from prunion.trainer.cost import CostModel

__all__ = ["Multiplier", "union", "union_price"]


def union(switches: torch.Tensor) -> torch.Tensor:
    """Soft or hard union over domains: `[D, U]` → `[U]` (eq. 8, folded over all domains)."""
    return 1 - (1 - switches).prod(dim=0)


def union_price(switches: torch.Tensor, cost: CostModel) -> tuple[float, torch.Tensor]:
    """Cost of the union as a share of the trunk, and what each switch is charged for it.

    The plain gradient of `a + b - ab` is `1 - b`: zero for every channel that two domains use, so
    it could never start to prune. Each user of a channel is charged an equal part of the
    channel's marginal cost instead (the Shapley value of the union): a channel shared by many is
    cheap for each, one used by a single domain costs that domain everything. A switch that is
    off is charged what joining would add: the whole price if nobody uses the channel, else nothing.

    Args:
        switches: 0/1, `[D, U]`.

    Returns:
        The cost, and the charge `[D, U]`.
    """
    users = switches.sum(dim=0)
    kept = (users > 0).double().requires_grad_()
    with torch.enable_grad():
        total = cost(kept)
        (marginal,) = torch.autograd.grad(total, kept)
    share = marginal.to(switches.dtype) / users.clamp(min=1)
    return float(total.detach()), torch.where((switches > 0) | (users == 0), share, 0.0)


@dataclass
class Multiplier:
    """λ of one inequality constraint, by dual ascent.

    λ grows while the constraint is violated, shrinks while it holds, stays in 0 … `largest`,
    and counts as 0 while the constraint holds (eq. 4's KKT condition).
    """

    rate: float
    largest: float
    value: float = 0.0

    def update(self, violation: float) -> float:
        """Take one step of dual ascent and return the multiplier to use now."""
        self.value = min(max(self.value + self.rate * violation, 0.0), self.largest)
        return self.value if violation > 0 else 0.0
