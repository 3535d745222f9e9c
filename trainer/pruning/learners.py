"""How switches learn: real-valued scores `[D, U]` whose sign says on or off, and two learners.

`SwitchLearner` is prunion's own; `PaperLearner` is the papers', kept to compare with. Both take
the gradient of the 0/1 switches as if it were that of the scores (the straight-through estimator,
Bengio, Léonard and Courville 2013, arXiv:1308.3432), and divide it by its own running size, as
Adam does (Kingma and Ba 2014, arXiv:1412.6980). They differ in what Adam is given, and `Learner`
is what they share: a state that a snapshot can hold.

The papers: Budget-Aware Adapters, Berriel, Lathuilière, Nabi, Klein, Oliveira-Santos, Sebe and
Ricci 2019, arXiv:1905.06242; Budget-Aware Pruning, dos Santos, Berriel, Oliveira-Santos, Sebe and
Almeida 2023, arXiv:2309.11464.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

__all__ = [
    "Learner",
    "PaperLearner",
    "SwitchLearner",
    "learner_state",
    "order_in_rows",
    "restore_learner",
]

# Of SwitchLearner. An off switch stays near enough to come back.
LOWEST, HIGHEST = -0.2, 1.2
FASTEST = 4.0  # largest step, in learning rates
MOMENTUM = 0.9
# The gradients' mean square forgets while a score moves by a quarter, but not within ten updates.
FORGETS, FORGETS_MOST = 4.0, 0.1
DAMPING = 0.1  # of a typical channel's noise, added to every channel's

# Of PaperLearner. FAST, SLOW and TINY are Adam's own defaults.
START = 1e-3
LEARNING_RATE = 1e-4
FAST, SLOW, TINY = 0.9, 0.999, 1e-8


class SwitchLearner:
    """Scores `[D, U]`; a switch is on where its score is positive.

    The task's gradient moves the scores as in Adam. The price that the budget puts on a channel is
    added *after* Adam's division by the gradient's root mean square: so a channel that the task is
    sensitive to gives way slowly and an idle one fast, whatever λ is.
    """

    def __init__(
        self,
        domains: int,
        units: int,
        lr: float,
        device: torch.device | None = None,
    ) -> None:
        """Scores of 1.

        Args:
            lr: how far a score moves in a step in which its gradient is of its usual size.
        """
        self.lr = lr
        self.scores = torch.ones(domains, units, device=device)
        self.mean = torch.zeros_like(self.scores)
        self.square = torch.zeros_like(self.scores)
        self.steps = torch.zeros(domains, 1, dtype=torch.int64, device=device)
        self.returned = 0

    def start(self, importance: torch.Tensor) -> None:
        """Place the scores by the order of `importance` `[D, U]`, in (0, 1], per domain."""
        importance = importance.to(self.scores.dtype)
        self.scores = order_in_rows(importance)
        self.square = importance.square()
        self.mean = torch.zeros_like(importance)
        self.steps.zero_()

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
        # A channel is worth more as its layer narrows, so the mean square must not remember the
        # wide layer: it forgets as fast as scores move.
        slow = 1 - min(FORGETS * self.lr, FORGETS_MOST)
        mean = self.mean[rows].lerp_(gradient, 1 - MOMENTUM)
        square = self.square[rows].mul_(slow).addcmul_(gradient, gradient, value=1 - slow)
        noise = square.sqrt()
        # Damped, or a channel with next to no gradient would move as fast as one that matters.
        typical = noise.median(dim=1, keepdim=True).values.clamp(min=1e-12)
        noise = noise + DAMPING * typical
        task = mean / (1 - MOMENTUM ** self.steps[rows].double()).float() / noise
        # Both parts count in learning rates: the task's push over its own noise, the price over
        # the channel's noise relative to a typical one. Sensitive channels so resist the price.
        step = (task + charge * typical / noise).clamp(-FASTEST, FASTEST)
        before = self.scores[rows]
        after = (before - self.lr * step).clamp(LOWEST, HIGHEST)
        self.scores[rows], self.mean[rows], self.square[rows] = after, mean, square
        self.returned += int(((after > 0) & (before <= 0)).sum())


def order_in_rows(values: torch.Tensor) -> torch.Tensor:
    """Each value's place in the ascending order of its row, from 1/U to 1: `[D, U]`."""
    order = values.argsort(dim=1, stable=True)
    places = torch.arange(1, values.shape[1] + 1, dtype=torch.float32, device=values.device)
    return torch.empty_like(values, dtype=torch.float32).scatter_(
        1, order, places.expand_as(order) / values.shape[1]
    )


class PaperLearner:
    """Scores `[D, U]`, on above 0; every gradient, λ's included, goes through Adam.

    Adam moves a score by its learning rate whatever the gradient's size, so ten steps in one
    direction turn a switch off.
    """

    def __init__(
        self,
        domains: int,
        units: int,
        lr: float = LEARNING_RATE,
        device: torch.device | None = None,
    ) -> None:
        """Scores of 10⁻³; `lr` is Adam's learning rate."""
        self.lr = lr
        self.scores = torch.full((domains, units), START, device=device)
        self.mean = torch.zeros_like(self.scores)
        self.square = torch.zeros_like(self.scores)
        self.rate = 1.0
        self.steps = torch.zeros(domains, 1, dtype=torch.int64, device=device)
        self.returned = 0

    def update(
        self, gradient: torch.Tensor, charge: torch.Tensor, domains: Sequence[int] | None = None
    ) -> None:
        """One step of Adam.

        Args:
            gradient: of the task loss with respect to the 0/1 switches, `[D, U]`.
            charge: of the budget and sharing losses, likewise.
            domains: whose scores move. By default all, whosever images the step had, as in the
                paper, whose sharing loss is everybody's.
        """
        rows = list(range(len(self.scores)) if domains is None else domains)
        total = (gradient + charge)[rows]
        self.steps[rows] += 1
        steps, before = self.steps[rows].double(), self.scores[rows]
        mean = self.mean[rows].lerp_(total, 1 - FAST)
        square = self.square[rows].mul_(SLOW).addcmul_(total, total, value=1 - SLOW)
        size = (square / (1 - SLOW**steps).float()).sqrt() + TINY
        after = before - self.rate * self.lr * (mean / (1 - FAST**steps).float()) / size
        self.scores[rows], self.mean[rows], self.square[rows] = after, mean, square
        self.returned += int(((after > 0) & (before <= 0)).sum())


class Learner(Protocol):
    """Adam's state over scores `[D, U]`, its steps, and how many switches came back on."""

    scores: torch.Tensor
    mean: torch.Tensor
    square: torch.Tensor
    steps: torch.Tensor
    returned: int


TENSORS = ("scores", "mean", "square", "steps")


def learner_state(learner: Learner) -> dict[str, torch.Tensor]:
    """A learner's state as tensors, for a snapshot."""
    returned = torch.tensor(learner.returned)
    return {**{name: getattr(learner, name) for name in TENSORS}, "returned": returned}


def restore_learner(learner: Learner, state: dict[str, torch.Tensor]) -> None:
    """Continue from `learner_state`, on the learner's device."""
    for name in TENSORS:
        value = state[name].to(learner.scores.device, copy=True)
        # The paper's steps were once counted for all domains together.
        setattr(learner, name, value.expand_as(getattr(learner, name)).clone())
    learner.returned = int(state["returned"])
