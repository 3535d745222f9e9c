"""Phases of a run and how the budget and the learning rate move through them.

"The paper's" is the schedule of dos Santos, Berriel, Oliveira-Santos, Sebe and Almeida 2023,
"Budget-Aware Pruning: Handling Multiple Domains with Less Parameters", arXiv:2309.11464, section
4.1: the whole budget from the first step, and rates that fall to a tenth after 45 of 60 epochs, or
after 15 and 30 of 45.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from prunion.trainer.config import Phase

__all__ = ["Schedule"]


@dataclass(frozen=True)
class Schedule:
    """Warm-up, ramp and settle, in steps.

    Warm-up trains with every switch on; the ramp tightens the budget while the switches learn;
    settling trains on with the switches fixed.
    """

    warmup: int
    ramp: int
    settle: int
    beta: float
    steps_down: bool = False  # the paper's: no ramp, the rates fall to a tenth at once
    # The steps of a task at which rates fall to a tenth, of another recipe too; without any the
    # paper's do after three quarters.
    drops: tuple[int, ...] = ()
    geometric: bool = False  # each step of the ramp allows the same share of the step before
    cuts_at_once: bool = False  # no ramp either, the rates as with one
    turns: tuple[Schedule, ...] = ()  # in place of all this: one after the other, each with its own

    @classmethod
    def of_turns(cls, turns: Sequence[Schedule]) -> Schedule:
        """Tasks one after the other, each with all its phases."""
        warmup, ramp, settle = (
            sum(getattr(turn, key) for turn in turns) for key in ("warmup", "ramp", "settle")
        )
        return cls(warmup, ramp, settle, turns[0].beta, turns=tuple(turns))

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        return self.warmup + self.ramp + self.settle

    @property
    def common_warmup(self) -> int:
        """Steps of warm-up that all domains have at once: of turns one learns before the other."""
        return 0 if len(self.turns) > 1 else self.warmup

    @property
    def starts(self) -> tuple[int, ...]:
        """The first step of each task."""
        ends = accumulate(turn.total for turn in self.turns)
        return (0, *ends)[: max(1, len(self.turns))]

    def task(self, step: int) -> int:
        """Whose turn it is, from 0."""
        return bisect_right(self.starts, step) - 1

    def _own(self, step: int) -> tuple[Schedule, int]:
        """The schedule of the present task, and its own step."""
        task = self.task(step)
        return self.turns[task], step - self.starts[task]

    def phase(self, step: int) -> Phase:
        """`warmup`, `ramp` or `settle`."""
        if self.turns:
            turn, step = self._own(step)
            return turn.phase(step)
        if step < self.warmup:
            return "warmup"
        if self.cuts_at_once:
            return "settle"
        return "ramp" if step < self.warmup + self.ramp else "settle"

    def target(self, step: int) -> float:
        """Share of the cost allowed at `step` of the ramp; the last tenth holds still at β."""
        if self.steps_down:
            return self.beta
        if self.cuts_at_once:
            return 1.0 if step < self.warmup else self.beta
        done = (step - self.warmup + 1) / max(1.0, 0.9 * self.ramp)
        done = min(max(done, 0.0), 1.0)
        return self.beta**done if self.geometric else 1 - (1 - self.beta) * done

    def passes(self, share: float) -> int:
        """Steps of the run until the ramp allows no more than `share`; its end for β or less."""
        if share <= self.beta:
            return self.warmup + self.ramp
        if self.geometric:
            done = math.log(min(share, 1.0)) / math.log(self.beta)
        else:
            done = (1 - share) / (1 - self.beta)
        steps = math.ceil(done * max(1.0, 0.9 * self.ramp) - 1e-9)
        return self.warmup + min(max(steps, 1), self.ramp)

    def switch_rate(self, step: int) -> float:
        """Factor of the paper's switches, which learn in the ramp: a tenth in its last quarter.

        Of slices in another recipe it is that of all rates.
        """
        if self.turns or self.drops or not self.steps_down:
            return self.rate(step)
        return 1.0 if step < self.warmup + 0.75 * self.ramp else 0.1

    def rate(self, step: int) -> float:
        """Learning-rate factor: a short rise, constant to the middle of the ramp, then a cosine.

        Or what `drops` and `steps_down` say.
        """
        if self.turns:
            turn, step = self._own(step)
            return turn.rate(step)
        if self.steps_down or self.drops:
            drops = self.drops or (0.75 * self.total,)
            return 0.1 ** sum(step >= drop for drop in drops)
        rise = max(1, min(20, self.total // 20))
        if step < rise:
            return (step + 1) / rise
        flat = self.warmup + self.ramp // 2
        if step < flat:
            return 1.0
        done = (step - flat) / max(1, self.total - flat)
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done))
