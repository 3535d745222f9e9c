"""λ: how hard the budget and the sharing loss push the switches.

Equations are those of dos Santos, Berriel, Oliveira-Santos, Sebe and Almeida 2023, "Budget-Aware
Pruning: Handling Multiple Domains with Less Parameters", arXiv:2309.11464. λ is a dual variable,
found by dual ascent instead of by the optimiser of the network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from prunion.trainer.config import TrainConfig
from prunion.trainer.cost import Cost
from prunion.trainer.methods import LARGEST_LAMBDA, PAPER_LAMBDA, PAPER_RATE, Multiplier
from prunion.trainer.pruning.sharing import domain_losses, sharing_gradient, union_price

__all__ = ["Pressure"]

RATE = 2.0  # of dual ascent, per step and unit of violation
LARGEST_JACCARD = 5.0  # of the paper's recipe: the constraint is never met, λ would only grow
# What agreeing may be worth, in prices of a unit. Jaccard's constraint is never met and the
# intersection's hardly ever: where they may pull harder, the ramp overshoots its budget.
LARGEST_PULL = 0.5


class Pressure:
    """Gradient of `L_PS + Σ L_B` by the switches, each weighted by its own λ (eq. 5).

    In prunion's recipe the network as a whole is held to the budget by the union's price, whatever
    makes the domains share: the union's loss does it, and the intersection's and Jaccard's are a
    pull beside it. Held by each domain's budget loss instead, as eq. 4 has it, the budgets' λ climb
    against that pull until they drown what the task says.
    """

    def __init__(
        self,
        config: TrainConfig,
        cost: Cost,
        domains: int,
        turns: int = 1,
        *,
        plain: bool = False,
        slices: float = 1.0,
        every: int | None = None,
        free: bool = False,
    ) -> None:
        """Every λ at its start.

        Args:
            turns: updates of the switches until each domain has had one; the sharing loss's λ,
                which moves at each of them, moves as much less.
            plain: the paper's equations to the letter, with its λ.
            slices: how many of the paper's switches, one for each filter and input channel, one
                unit stands for on average. Their charges add up, the task's gradients, of any
                sign, add up to the square root only: so every charge is divided by that root, and
                λ pushes a unit as hard as it pushed its slices.
            every: the switches learn at one of so many steps, instead of the run's `switch_every`.
            free: nothing is charged, whatever the run says.
        """
        self.config, self.cost, self.plain, self.free = config, cost, plain, free
        self.slice_root = math.sqrt(slices)
        largest = LARGEST_JACCARD if config.sharing == "jaccard" else LARGEST_LAMBDA
        # The union's loss has the network's budget in it.
        self.holds_network = not (plain or free or config.sharing in ("union", "none"))
        rate = PAPER_RATE if self.plain else RATE * (every or config.switch_every)
        start = PAPER_LAMBDA if self.plain else 0.0
        self.sharing = Multiplier(rate / turns, largest, start)
        self.network = Multiplier(rate / turns, LARGEST_LAMBDA, start)
        self.domains = [Multiplier(rate, LARGEST_LAMBDA, start) for _ in range(domains)]

    def charge(
        self,
        switches: torch.Tensor,
        target: float,
        beta: float,
        domains: Sequence[int] | None = None,
    ) -> torch.Tensor:
        """One step of λ, and what each switch is charged, `[D, U]`.

        The sharing loss charges the switches of every domain, a budget loss those of its own, in
        the steps that hold its images (eq. 5): an absent domain could not object to the price.

        Args:
            switches: 0/1, `[D, U]`.
            target: share of the trunk's cost that is allowed now.
            beta: the final one: violations count relative to it.
            domains: whose images the step had; all of them by default.
        """
        total = torch.zeros_like(switches)
        if self.config.sharing != "none" and not self.free:
            kind = self.config.sharing
            value, gradient = sharing_gradient(kind, switches, self.cost, target, plain=self.plain)
            violation = value / beta if kind == "union" else value
            if self.holds_network:
                # The losses are shares of about the target: it times their gradients are prices.
                self.sharing.largest = LARGEST_PULL * target
                whole, price = union_price(switches, self.cost)
                total += self.network.update((whole - target) / beta) * price
            total += self._weight(violation) * gradient
        if self.holds_domains:
            present = range(len(switches)) if domains is None else domains
            total += self._domain_charge(switches, target, beta, present)
        return (1 / self.slice_root) * total

    @property
    def holds_domains(self) -> bool:
        """Whether every domain has a budget loss of its own (eq. 4).

        By default in the paper's equations, and where no sharing loss holds all of them together.
        """
        if self.free:
            return False
        if isinstance(self.config.domain_budget, bool):
            return self.config.domain_budget
        return self.plain or self.config.sharing == "none"

    def values(self) -> list[float]:
        """Every λ: the sharing loss's, each domain's, and the network's where it has its own."""
        return [m.value for m in self._all()]

    def figures(self, names: Sequence[str]) -> dict[str, float]:
        """The same for a run's log, by the domains' names where they have one each."""
        each = zip(names, self.domains, strict=True) if self.holds_domains else ()
        shared = {"lambda": self.sharing.value}
        if self.holds_network:
            shared["lambda_network"] = self.network.value
        return shared | {f"lambda/{name}": m.value for name, m in each}

    def restore(self, values: Sequence[float]) -> None:
        """Put back what `values` gave."""
        for multiplier, value in zip(self._all(), values, strict=True):
            multiplier.value = float(value)

    def _all(self) -> tuple[Multiplier, ...]:
        network = (self.network,) if self.holds_network else ()
        return (self.sharing, *self.domains, *network)

    def _weight(self, violation: float) -> float:
        weight = self.config.sharing_weight
        if isinstance(weight, str):
            return self.sharing.update(violation)
        self.sharing.value = float(weight)  # as the log shows it
        return self.sharing.value * (violation > 0)

    def _domain_charge(
        self, switches: torch.Tensor, target: float, beta: float, domains: Sequence[int]
    ) -> torch.Tensor:
        with torch.enable_grad():
            leaf = switches.detach().clone().requires_grad_()
            losses = domain_losses(leaf, self.cost, target)
            (gradient,) = torch.autograd.grad(losses.sum(), leaf)
        violations = (losses.detach() / beta).tolist()
        weights = [0.0] * len(violations)
        for domain in domains:
            weights[domain] = self.domains[domain].update(violations[domain])
        return gradient * gradient.new_tensor(weights).unsqueeze(1)
