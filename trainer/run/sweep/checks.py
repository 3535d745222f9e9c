"""Which runs cannot be one sweep, and what is asked of their network once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from prunion.runtime.base import read_json, shown
from prunion.runtime.errors import ConfigError, PrunionError
from prunion.trainer.config import GRAPH, STATE, RunConfig
from prunion.trainer.network import AROUND, DomainNet
from prunion.trainer.run.start import ExportCheck
from prunion.trainer.run.sweep.branches import Shared
from prunion.trainer.run.sweep.sweep_run import SweepRun

__all__ = ["asked_once", "check_different", "check_pruned", "check_shared"]


def asked_once(check: ExportCheck, folders: Sequence[Path]) -> ExportCheck:
    """The check of runs that share a network: asked for the first, its answer serves all.

    Not where one of `folders` was begun with that network: then it passed.
    """
    begun = [place / GRAPH for place in folders if (place / STATE).is_file()]
    told: list[int | None] = []

    def once(
        net: DomainNet, height: int, width: int, round_to: int, own: Sequence[str]
    ) -> int | None:
        for path in [] if told else begun:
            graph = read_json(path) if path.is_file() else None
            if isinstance(graph, dict) and graph.get("nodes") == net.graph["nodes"]:
                told.append(graph.get(AROUND))
        if not told:
            told.append(check(net, height, width, round_to, own))
        return told[0]

    return once


def check_different(runs: Sequence[SweepRun]) -> None:
    """Refuse two runs of one seed and budget, however that is written: 1M and 1000000."""
    seen: dict[tuple[int, bool, float], Path] = {}
    for config, place in runs:
        budget = config.budget
        other = seen.setdefault((config.seed, budget.is_fraction, budget.amount), place)
        if other is not place:
            raise PrunionError(
                f"{other.name} and {place.name} have the same seed and budget: leave one out"
            )


def check_pruned(configs: Sequence[RunConfig], given: str) -> None:
    """Refuse several budgets for a method that keeps all: each run would be the same again.

    `given` is what they were given as, for the message.
    """
    train, limits = configs[0].train, {str(config.budget.limit) for config in configs}
    if len(limits) > 1 and not train.traits.prunes and train.granularity == "channel":
        raise ConfigError(
            f'{given} has {len(limits)} limits, and [train] method is "{train.method}" '
            f"({train.traits.what}), which prunes to none of them: give one"
        )


def check_shared(shared: str, configs: Sequence[RunConfig], given: str) -> None:
    """Raise ConfigError for what runs cannot share, or where one budget leaves nothing to share.

    `given` is what several budgets are given as, for the message.
    """
    if shared not in get_args(Shared):
        words = " or ".join(f'"{word}"' for word in get_args(Shared))
        raise ConfigError(f"share is {shown(shared)}: use {words}")
    if shared != "ramp" and len({str(config.budget.limit) for config in configs}) < 2:
        raise ConfigError(
            f"share is {shown(shared)}, which means nothing without several {given}: leave it out"
        )
