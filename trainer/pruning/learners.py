"""Learning the switches: real-valued scores whose sign says on or off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

__all__ = ["Learner", "PaperLearner", "SwitchLearner", "learner_state", "ranks", "restore_learner"]


LOWEST, HIGHEST = -0.2, 1.2  # an off switch stays near enough to come back
FASTEST = 4.0  # largest step, in learning rates
# The gradients' mean square forgets while a score moves by a quarter, but not within ten updates.
FORGETS, FORGETS_MOST = 4.0, 0.1


class SwitchLearner:
    """Scores `[D, U]`; a switch is on where its score is positive.

    The straight-through gradient of the task moves the scores as in Adam. The price of the
    budget is added *after* Adam's division by the gradient's root mean square, so that a channel
    the task is sensitive to gives way slowly and an idle one fast, whatever λ is. What a channel is
    worth grows as its layer narrows, so that root mean square must not remember the wide layer.
    """

    def __init__(
        self, domains: int, units: int, lr: float, device: torch.device | None = None
    ) -> None:
        self.lr = lr
        self.scores = torch.ones(domains, units, device=device)
        self.mean = torch.zeros_like(self.scores)
        self.square = torch.zeros_like(self.scores)
        self.steps = torch.zeros(domains, 1, dtype=torch.int64, device=device)
        self.returned = 0

    def start(self, importance: torch.Tensor) -> None:
        """Place the scores at the ranks of `importance` `[D, U]`, in (0, 1], per domain."""
        self.scores = ranks(importance)
        self.square = importance.square()
        self.mean = torch.zeros_like(importance)
        self.steps.zero_()

    def on(self) -> torch.Tensor:
        """0/1 switches `[D, U]`, a leaf that collects the straight-through gradient."""
        return (self.scores > 0).float().requires_grad_()

    def update(
        self, gradient: torch.Tensor, charge: torch.Tensor, domains: Sequence[int] | None = None
    ) -> None:
        """One step.

        Args:
            gradient: of the task loss with respect to the 0/1 switches, `[D, U]`.
            charge: λ times the price of each switch, in units of the mean price, `[D, U]`.
            domains: whose images the step had; the others, who could not object to the price, stay
                as they are. All of them by default.
        """
        rows = list(range(len(self.scores)) if domains is None else domains)
        gradient, charge = gradient[rows], charge[rows]
        self.steps[rows] += 1
        fast, slow = 0.9, 1 - min(FORGETS * self.lr, FORGETS_MOST)
        mean = self.mean[rows].lerp_(gradient, 1 - fast)
        square = self.square[rows].mul_(slow).addcmul_(gradient, gradient, value=1 - slow)
        noise = square.sqrt()
        typical = noise.median(dim=1, keepdim=True).values.clamp(min=1e-12)
        noise = noise + 0.1 * typical
        task = mean / (1 - fast ** self.steps[rows].double()).float() / noise
        step = (task + charge * typical / noise).clamp(-FASTEST, FASTEST)
        before = self.scores[rows]
        after = (before - self.lr * step).clamp(LOWEST, HIGHEST)
        self.scores[rows], self.mean[rows], self.square[rows] = after, mean, square
        self.returned += int(((after > 0) & (before <= 0)).sum())


def ranks(values: torch.Tensor) -> torch.Tensor:
    """Rank of each value within its row, from 1/U to 1: `[D, U]`."""
    order = values.argsort(dim=1, stable=True)
    places = torch.arange(1, values.shape[1] + 1, dtype=torch.float32, device=values.device)
    return torch.empty_like(values, dtype=torch.float32).scatter_(
        1, order, places.expand_as(order) / values.shape[1]
    )


START = 1e-3
LEARNING_RATE = 1e-4
FAST, SLOW, TINY = 0.9, 0.999, 1e-8  # Adam's own defaults


class PaperLearner:
    """Scores `[D, U]`, on above 0; every gradient, λ's included, goes through Adam.

    Adam moves a score by its learning rate whatever the gradient's size, so ten steps in one
    direction turn a switch off. Kept beside `SwitchLearner` to compare with.
    """

    def __init__(self, domains: int, units: int, device: torch.device | None = None) -> None:
        self.scores = torch.full((domains, units), START, device=device)
        self.mean = torch.zeros_like(self.scores)
        self.square = torch.zeros_like(self.scores)
        self.rate = 1.0
        self.steps = torch.zeros((), dtype=torch.int64, device=device)
        self.returned = 0

    def on(self) -> torch.Tensor:
        """0/1 switches `[D, U]`, a leaf that collects the straight-through gradient."""
        return (self.scores > 0).float().requires_grad_()

    def update(self, gradient: torch.Tensor, charge: torch.Tensor) -> None:
        """One step of Adam, of every domain, whosever images the step had, as in the paper.

        Args:
            gradient: of the task loss with respect to the 0/1 switches, `[D, U]`.
            charge: of the budget and sharing losses, likewise.
        """
        self.steps += 1
        total = gradient + charge
        self.mean.lerp_(total, 1 - FAST)
        self.square.mul_(SLOW).addcmul_(total, total, value=1 - SLOW)
        mean = self.mean / (1 - FAST ** int(self.steps))
        size = (self.square / (1 - SLOW ** int(self.steps))).sqrt() + TINY
        before = self.scores > 0
        self.scores = self.scores - self.rate * LEARNING_RATE * mean / size
        self.returned += int(((self.scores > 0) & ~before).sum())


TENSORS = ("scores", "mean", "square", "steps")


class Learner(Protocol):
    """Adam's state over scores `[D, U]`, its steps, and how many switches came back on."""

    scores: torch.Tensor
    mean: torch.Tensor
    square: torch.Tensor
    steps: torch.Tensor
    returned: int


def learner_state(learner: Learner) -> dict[str, torch.Tensor]:
    """The state as tensors."""
    returned = torch.tensor(learner.returned)
    return {**{name: getattr(learner, name) for name in TENSORS}, "returned": returned}


def restore_learner(learner: Learner, state: dict[str, torch.Tensor]) -> None:
    """Continue from `learner_state`, on the learner's device."""
    for name in TENSORS:
        setattr(learner, name, state[name].to(learner.scores.device, copy=True))
    learner.returned = int(state["returned"])
