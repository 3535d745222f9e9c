"""Losses that make the domains agree on channels, and their gradients.

They are eqs. 4 and 6 to 9 of dos Santos, Berriel, Oliveira-Santos, Sebe and Almeida 2023,
"Budget-Aware Pruning: Handling Multiple Domains with Less Parameters", arXiv:2309.11464. Everywhere
`cost` is the differentiable share of the trunk's cost. With the budget's kind `switches` it is the
plain share of the units, and the equations are the paper's to the letter.
"""

from __future__ import annotations

import torch

from prunion.trainer.config import SharingLoss
from prunion.trainer.cost import Cost
from prunion.trainer.methods import NOTHING, intersection, loss_of_sharing

__all__ = [
    "domain_losses",
    "marginal_cost",
    "sharing_gradient",
    "sharing_loss",
    "union_price",
]


def sharing_loss(
    kind: SharingLoss, switches: torch.Tensor, cost: Cost, beta: float
) -> torch.Tensor:
    """The sharing loss before its weight λ and before max(0, ·), a differentiable scalar.

    Args:
        kind: `union` (eq. 7), `intersection` (eq. 6) or `jaccard` (eq. 9, which ignores `beta`).
        switches: 0 … 1, `[D, U]`.
    """
    return loss_of_sharing(kind, lambda together: cost(together(switches)), beta)


def domain_losses(switches: torch.Tensor, cost: Cost, beta: float) -> torch.Tensor:
    """How far each domain alone is over the budget, `[D]` (eq. 4 before λ and max)."""
    return torch.stack([cost(row) for row in switches]) - beta


def sharing_gradient(
    kind: SharingLoss, switches: torch.Tensor, cost: Cost, beta: float, *, plain: bool = False
) -> tuple[float, torch.Tensor]:
    """Value of `sharing_loss` on 0/1 switches, and the direction `[D, U]` to descend along.

    Args:
        plain: the equations' own gradient, as the paper uses it. Otherwise the union's part is
            `union_price`, which can prune where domains agree.
    """
    if kind == "union" and not plain:
        value, price = union_price(switches, cost)
        return value - beta, price
    with torch.enable_grad():
        leaf = switches.detach().clone().requires_grad_()
        loss = sharing_loss(kind, leaf, cost, beta)
        (gradient,) = torch.autograd.grad(loss, leaf)
    if kind == "jaccard" and not plain:
        gradient = _jaccard_price(switches, cost)
    return float(loss.detach()), gradient


def union_price(switches: torch.Tensor, cost: Cost) -> tuple[float, torch.Tensor]:
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
    total, marginal = marginal_cost(cost, (users > 0).double())
    share = marginal.to(switches.dtype) / users.clamp(min=1)
    return total, torch.where((switches > 0) | (users == 0), share, 0.0)


def _jaccard_price(switches: torch.Tensor, cost: Cost) -> torch.Tensor:
    """Eq. 9's gradient by the quotient rule, with the union's part shared among its users."""
    whole, price = union_price(switches, cost)
    whole = max(whole, NOTHING)
    common, marginal = marginal_cost(cost, intersection(switches).double())
    others = torch.stack(
        [torch.cat([switches[:d], switches[d + 1 :]]).prod(dim=0) for d in range(len(switches))]
    )
    gain = marginal.to(switches.dtype) * others
    return (common * price / whole - gain) / whole


def marginal_cost(cost: Cost, kept: torch.Tensor) -> tuple[float, torch.Tensor]:
    """The cost of `kept` `[U]`, and its derivative by every unit."""
    with torch.enable_grad():
        leaf = kept.requires_grad_()
        total = cost(leaf)
        (marginal,) = torch.autograd.grad(total, leaf)
    return float(total.detach()), marginal
