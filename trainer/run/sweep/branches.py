"""Where the runs of one seed part: at the end of warm-up, or on the ramp.

The ramp takes the budget down from the whole network to its limit. A run with a higher limit would
take the same ramp more slowly, so the network that a seed's lowest budget has when the ramp passes
another one's limit is one that this other run could have met: it is cut there to its own limit, and
settles. It has then learned along a steeper ramp, so it is close to a run of its own, not the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from prunion.trainer.config import RAMPED, RunConfig
from prunion.trainer.cost import make_budget
from prunion.trainer.learning import Training
from prunion.trainer.run.folder import BRANCHED, SHARING, Fork
from prunion.trainer.run.sweep.sweep_run import SweepRun

__all__ = ["SHORTER", "Shared", "fork_of", "leading_run", "sharing_facts"]

Shared = Literal["ramp", "warm-up"]
# Share of settling that a network would skip from which the ramp has taken nothing yet. Nobody
# skips any until figures say that it costs no accuracy.
SHORTER = 0.0


def leading_run(runs: Sequence[SweepRun], shares: Sequence[float], shared: Shared) -> SweepRun:
    """Which of a seed's runs the others leave: the one with the lowest budget, or the first.

    Args:
        shares: of the backbone's cost that each run allows.
    """
    if shared == "ramp" and _descends(runs[0].config):
        return runs[min(range(len(runs)), key=lambda i: shares[i])]
    return runs[0]


def sharing_facts(shared: Shared, shorter: float) -> dict[str, str | float]:
    """What decides, beside the runs' own settings, where they part."""
    return {"share": shared, "shorter": shorter}


def fork_of(
    training: Training,
    other: RunConfig,
    path: Path,
    leader: str,
    shared: Shared,
    shorter: float = SHORTER,
) -> Fork | None:
    """Where `other` leaves the run of `training`, which differs in its budget's limit at most.

    On the ramp: once that allows no more than the other's limit. The other goes on with settling,
    of which it skips the more the earlier it left: `shorter` of it if it left at once, nothing from
    the ramp's end. At the end of warm-up, and with its very next step, where there is no ramp to
    share; nowhere in the paper's recipe and where slices are switched, whose budget acts from the
    first step.

    Args:
        path: where the state is to be kept.
        leader: what the run of `training` is called.
    """
    schedule, each = training.schedule, training.batches.steps_per_epoch
    train, budget = training.config.train, training.config.budget
    pricer, keep = training.budget.pricer, other.backbone.keep
    share = make_budget(other.budget, pricer, keep, cuts=train.traits.prunes).share
    descends = _descends(other) and training.recipe.learns and not schedule.turns
    if train.recipe == "paper" or train.granularity == "slice":
        return None
    sharing = {SHARING: sharing_facts(shared, shorter)}
    if shared != "ramp" or not descends or share >= 1:
        return Fork(path, train.warmup * each, facts=sharing)
    step = schedule.passes(share)
    left = (schedule.warmup + schedule.ramp - step) / schedule.ramp  # of the ramp
    settle = max(1, math.ceil(train.settle * (1 - shorter * left)))
    goes_on = (train.epochs - settle) * each
    facts = {"run": leader, "limit": budget.limit, "steps": step, "skipped": goes_on - step}
    return Fork(path, step, goes_on, {**sharing, BRANCHED: facts})


def _descends(config: RunConfig) -> bool:
    """Whether the budget falls on a ramp, behind which the network settles."""
    train = config.train
    return train.recipe in RAMPED and train.ramp > 0 and train.settle > 0
