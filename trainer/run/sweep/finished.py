"""The runs of a sweep that are finished: which they are, and that one table may hold them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prunion.runtime.base import read_json, shown
from prunion.runtime.errors import PrunionError
from prunion.trainer.config import (
    CHECKPOINT,
    CHECKPOINT_FILE,
    RECORD,
    STATE,
    DomainConfig,
    RunConfig,
    lacks_shape,
)
from prunion.trainer.run.folder import SHARING, SWEPT, snapshot_facts
from prunion.trainer.run.sweep.sweep_run import SweepRun
from prunion.trainer.run.sweep.table import draw_frontier, sweep_result
from prunion.trainer.score import MadeBy, other_run, read_made_by, recounted, untold

__all__ = ["check_alike", "draw_all", "draw_of", "ended", "is_finished"]

log = logging.getLogger(__name__)

Sharing = Mapping[str, str | float]
DIFFER = (("seed",), ("budget", "limit"))  # the keys in which a sweep's runs differ


def is_finished(config: RunConfig, folder: Path) -> bool:
    """Whether a folder holds the end of this very run; of another one `train_run` tells."""
    checkpoint = folder / CHECKPOINT / CHECKPOINT_FILE
    if not (folder / RECORD).is_file() or not checkpoint.is_file():
        return False
    record = folder / RECORD
    for path, key in ((checkpoint, "config"), (record, "result")):
        value = read_json(path)
        if not isinstance(value, dict) or not isinstance(value.get(key), dict):
            raise PrunionError(f"{path} holds no {key}: remove {folder}, and it is trained anew")
    try:  # the table is made when all are trained, which may take days
        sweep_result(folder, [config], [read_json(record)["result"] | {"seed": 0, "folder": ""}])
    except (KeyError, TypeError, ValueError, AttributeError):
        problem = "holds a result without what a sweep's table tells"
        raise PrunionError(f"{record} {problem}: remove {folder}, and it is trained anew") from None
    written = read_json(checkpoint)["config"]
    stored = RunConfig.from_checkpoint(written)
    if lacks_shape(written) and stored.train.recipe == config.train.recipe:
        shaped = replace(stored.train, ramp_shape=config.train.ramp_shape)  # of another's name
        stored = replace(stored, train=shaped)
    same = replace(stored, device=config.device, threads=config.threads)
    workers = replace(config.train, workers=stored.train.workers)
    return same == replace(config, train=workers)


def _finished_beside(folder: Path, runs: Sequence[SweepRun], sharing: Sharing) -> list[SweepRun]:
    """The finished runs in a sweep's folder that are not among its `runs`, and may stand beside.

    They are of another seed or limit, and all else is alike, images too. The log tells of the
    others, which the sweep's picture then lacks.
    """
    found, left, known = [], [], {run.folder for run in runs}
    for place in sorted(folder.glob(SWEPT)):
        if place in known or not (place / CHECKPOINT / CHECKPOINT_FILE).is_file():
            continue
        config, why = _held_against(place, runs, sharing)
        if why:
            left.append(f"{place.name} ({why})")
        else:
            found.append(SweepRun(config, place))
    if left:
        log.warning("the picture of %s lacks runs that lie there too: %s", folder, "; ".join(left))
    return found


def _held_against(place: Path, runs: Sequence[SweepRun], sharing: Sharing) -> tuple[RunConfig, str]:
    """What the run in `place` would be as one of `runs`, and why it is none; "" if it is one."""
    config = runs[0].config
    if not (place / RECORD).is_file():
        return config, "not finished"
    try:
        written = read_json(place / CHECKPOINT / CHECKPOINT_FILE)
        stored = RunConfig.from_checkpoint(written["config"])
        budget = replace(config.budget, limit=stored.budget.limit)
        config = replace(config, seed=stored.seed, budget=budget)
        alike = is_finished(config, place)
        facts = dict(snapshot_facts(place / STATE).get(SHARING, sharing))  # none if it left nobody
    except (PrunionError, KeyError, TypeError, ValueError):
        return config, "damaged"
    if told := _other_than(config, place, runs):
        return config, f"of a run with {told}"
    if not alike:
        return config, "of a run with another configuration"
    for key, now in sharing.items():
        if facts.get(key) != now:
            told = f"of a sweep with {key} = {shown(facts.get(key))}"
            return config, f"{told}, and this one has {shown(now)}"
    return config, ""


def _other_than(config: RunConfig, place: Path, runs: Sequence[SweepRun]) -> str:
    """In what a run is another one than `runs`, images too; "" also where nobody knows.

    Where none of them drew its images by the same seed, those that were drawn differ all the same:
    there the classes and the number of images tell.
    """
    own = next((own for run, own in runs if draw_of(run) == draw_of(config)), None)
    one, other = (read_made_by(path) for path in (place, own or runs[0].folder))
    if own is None:
        drawn = [domain.name for domain in config.domains if _draws(domain)]
        one, other = (_without_digests(x, drawn) for x in (one, other))
    return other_run(one, other, DIFFER)


def _without_digests(made_by: MadeBy, names: Sequence[str]) -> MadeBy:
    domains = dict(made_by.get("domains", {}))
    domains |= {x: {**domains[x], "digests": {}} for x in names if x in domains}
    return {**made_by, "domains": domains}


def ended(run: SweepRun) -> dict[str, Any]:
    """What a finished run's record has of its result, and what a table needs beside."""
    record = read_json(run.folder / RECORD)
    return {**record["result"], "seed": run.config.seed, "folder": str(run.folder)}


def draw_all(folder: Path, runs: Sequence[SweepRun], sharing: Sharing) -> tuple[Path, ...]:
    """Draw the frontier of a sweep's `runs`, and of those of earlier sweeps in its folder.

    A picture that is there already shows these too, and is replaced.

    Args:
        sharing: `sharing_facts` of the sweep, by which its runs parted.
    """
    every = [*runs, *_finished_beside(folder, runs, sharing)]
    configs = [run.config for run in every]
    return draw_frontier(sweep_result(folder, configs, [ended(run) for run in every]))


def draw_of(config: RunConfig) -> int | None:
    """The seed that chose some of a run's images; None where none chose any."""
    return config.seed if any(map(_draws, config.domains)) else None


def _draws(domain: DomainConfig) -> bool:
    return bool(domain.holdout or domain.validation_holdout or domain.limit)


def check_alike(finished: Sequence[SweepRun], others: Callable[[RunConfig], MadeBy]) -> None:
    """Refuse to set finished runs beside `others` unlike them; say where nobody knows."""
    unknown = []
    for config, place in finished:
        before, other = read_made_by(place), others(config)
        told = other_run(before, other, DIFFER)
        if told and recounted(before, other, DIFFER):
            was, is_now = (shown(x.get("cost")) for x in (before, other))
            raise PrunionError(
                f"{place} is of an earlier prunion, which counted what the method adds otherwise "
                f"(the whole network cost {was}, and costs {is_now}), and one table would have "
                "both: give another -o, which keeps these results, or start all of them again "
                "with --force"
            )
        if told:
            raise PrunionError(
                f"{place} is of a run with {told}, and one table would have both: remove that "
                "folder to train it again, or start all of them again with --force"
            )
        if untold(before, other, [domain.name for domain in config.domains]):
            unknown.append(str(place))
    if unknown:
        log.warning(
            "%s: of an earlier prunion, which did not note its images; whether all runs of the "
            "table have the same ones cannot be told",
            ", ".join(unknown),
        )
