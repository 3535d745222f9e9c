"""The runs of a sweep that are finished: which they are, and that one table may hold them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from prunion.runtime.base import read_json
from prunion.runtime.errors import PrunionError
from prunion.trainer.config import RunConfig, lacks_shape
from prunion.trainer.run.record import RECORD
from prunion.trainer.run.sweep.table import sweep_result
from prunion.trainer.score import MadeBy, other_run, read_made_by, untold

__all__ = ["check_alike", "draw_of", "is_finished"]

log = logging.getLogger(__name__)

SWEPT = (("seed",), ("budget", "limit"))  # the keys in which a sweep's runs differ


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
        if told := other_run(before, other, SWEPT):
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
