"""At which steps of a ramp the switches learn, and how far they move in one of them."""

from __future__ import annotations

from dataclasses import dataclass

from prunion.trainer.config import TrainConfig

__all__ = ["Pace", "pace_of"]

LEAST_UPDATES = 72  # of the switches in a ramp


@dataclass(frozen=True)
class Pace:
    """How often the switches learn.

    Attributes:
        turns: steps until each domain has had one.
        every: the switches learn at one of so many rounds.
        round: steps of a round, which every domain has the same number of.
        travel: how far a score moves in a step in which its gradient is of its usual size.
    """

    turns: int
    every: int
    round: int
    travel: float

    def learns_at(self, step: int) -> bool:
        """Whether they learn at this step."""
        return step // self.round % self.every == 0


def pace_of(train: TrainConfig, ramp: int, domains: int) -> Pace:
    """The pace of a ramp of so many steps."""
    turns = 1 if train.order == "joint" else domains
    # A short ramp needs every step: too few updates overshoot and cut what matters.
    every = max(1, min(train.switch_every, ramp // (LEAST_UPDATES * turns)))
    if train.order not in ("joint", "batch"):
        every = 1  # domains come in stretches, of which some could miss every step that learns
    travel = train.switch_travel * every * turns / max(1, ramp)
    return Pace(turns, every, turns if train.order == "batch" else 1, travel)
