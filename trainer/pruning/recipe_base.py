"""What every recipe has: phases, scores and the rule that moves them, a price, a cut."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from prunion.trainer.pruning.learners import Learner
from prunion.trainer.pruning.multipliers import Pressure
from prunion.trainer.pruning.schedule import Schedule

__all__ = ["Recipe"]


@dataclass(frozen=True, eq=False)
class Recipe(ABC):
    """How the switches of a run learn.

    Attributes:
        schedule: the phases, and the budget and the rates at each step.
        learner: the scores of the switches, and the rule that moves them.
        pressure: what the budget and the sharing loss charge each switch.
        learns: False where the budget leaves nothing to cut: every switch stays on.
        starts_whole: True if warm-up has every switch on, False if as the network comes.
        ranked: whether `start` wants to know each switch's importance before the ramp.
        ranking_steps: steps that tell importance, of one epoch at most.
    """

    schedule: Schedule
    learner: Learner
    pressure: Pressure
    learns: bool = field(default=True, kw_only=True)
    starts_whole: bool = field(default=True, kw_only=True)
    ranked: bool = field(default=False, kw_only=True)
    ranking_steps: int = field(default=24, kw_only=True)

    def start(self, importance: torch.Tensor) -> None:
        """Place the scores before the ramp, knowing the switches' importance `[D, U]`."""
        raise NotImplementedError("a recipe that ranks says how")

    def learns_at(self, step: int) -> bool:
        """Whether the switches learn at this step of the ramp."""
        return True

    def chosen(self) -> torch.Tensor:
        """What each domain has on, 0/1 `[D, U]`."""
        return (self.learner.scores > 0).float()

    @abstractmethod
    def learn(
        self, step: int, on: torch.Tensor, gradient: torch.Tensor, domains: Sequence[int]
    ) -> None:
        """Move the scores once.

        Args:
            on: the switches of the step, 0/1 `[D, U]`.
            gradient: of the domains' losses by them, `[D, U]`.
            domains: whose images the step had.
        """

    @abstractmethod
    def cut(self) -> torch.Tensor:
        """The switches that stay for good, 0/1 `[D, U]`."""
