"""The runs of a sweep that are finished: which they are, and that one table may hold them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prunion.runtime.base import read_json
from prunion.runtime.errors import PrunionError
from prunion.trainer.config import RunConfig, lacks_shape
from prunion.trainer.run.folder import SWEPT
from prunion.trainer.run.record import RECORD
from prunion.trainer.run.sweep.table import draw_frontier, sweep_result
from prunion.trainer.score import MadeBy, other_run, read_made_by, untold

__all__ = ["check_alike", "draw_all", "draw_of", "ended", "is_finished"]

log = logging.getLogger(__name__)

DIFFER = (("seed",), ("budget", "limit"))  # the keys in which a sweep's runs differ


def is_finished(config: RunConfig, folder: Path) -> bool:
    """Whether a folder holds the end of this very run; of another one `train_run` tells."""
    checkpoint = folder / "checkpoint" / "checkpoint.json"
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


def _finished_beside(
    folder: Path, runs: Sequence[tuple[RunConfig, Path]]
) -> list[tuple[RunConfig, Path]]:
    """The finished runs in a sweep's folder that are not among its `runs`, and may stand beside.

    They are of another seed or limit, and all else is alike, images too. The log tells of the
    others, which the sweep's picture then lacks.
    """
    found, left, known = [], [], {place for _, place in runs}
    for place in sorted(folder.glob(SWEPT)):
        checkpoint = place / "checkpoint" / "checkpoint.json"
        if place in known or not checkpoint.is_file():
            continue
        try:
            stored = RunConfig.from_checkpoint(read_json(checkpoint)["config"])
            limit = replace(runs[0][0].budget, limit=stored.budget.limit)
            config = replace(runs[0][0], seed=stored.seed, budget=limit)
            alike = is_finished(config, place) and _same_images(config, place, runs)
        except (PrunionError, KeyError, TypeError):
            alike = False
        if alike:
            found.append((config, place))
        else:
            left.append(place.name)
    if left:
        log.warning(
            "the picture of %s lacks %s, which lie there too: damaged, or of other images or "
            "another run file than those that were asked for",
            folder,
            ", ".join(left),
        )
    return found


def _same_images(config: RunConfig, place: Path, runs: Sequence[tuple[RunConfig, Path]]) -> bool:
    """Whether a run's images are those of a run that drew alike; also where nobody knows."""
    other = next((own for run, own in runs if draw_of(run) == draw_of(config)), None)
    return other is not None and not other_run(read_made_by(place), read_made_by(other), DIFFER)


def ended(run: tuple[RunConfig, Path]) -> dict[str, Any]:
    """What a finished run's record has of its result, and what a table needs beside."""
    config, place = run
    return {**read_json(place / RECORD)["result"], "seed": config.seed, "folder": str(place)}


def draw_all(folder: Path, runs: Sequence[tuple[RunConfig, Path]]) -> tuple[Path, ...]:
    """Draw the frontier of a sweep's `runs`, and of those of earlier sweeps in its folder.

    A picture that is there already shows these too, and is replaced.
    """
    every = [*runs, *_finished_beside(folder, runs)]
    configs = [config for config, _ in every]
    return draw_frontier(sweep_result(folder, configs, [ended(run) for run in every]))


def draw_of(config: RunConfig) -> int | None:
    """The seed that chose some of a run's images; None where none chose any."""
    drawn = any(d.holdout or d.validation_holdout or d.limit for d in config.domains)
    return config.seed if drawn else None


def check_alike(
    finished: Sequence[tuple[RunConfig, Path]], others: Callable[[RunConfig], MadeBy]
) -> None:
    """Refuse to set finished runs beside `others` of other images; say where nobody knows."""
    unknown = []
    for config, place in finished:
        before, other = read_made_by(place), others(config)
        if told := other_run(before, other, DIFFER):
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
