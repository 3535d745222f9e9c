"""What a verdict asks of one run: how well it learned and answers, as its folder tells."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from prunion.runtime.base import bits_from_hex, json_of, read_json
from prunion.runtime.errors import PrunionError
from prunion.trainer.config import LOG, RECORD, BudgetConfig, RunConfig
from prunion.trainer.score.made_by import MadeBy, not_paired, read_made_by
from prunion.trainer.score.pruning import Pruning

__all__ = ["Learned", "comparable", "read_learned"]


@dataclass(frozen=True, eq=False)
class Learned:
    """What a verdict asks of one run.

    Attributes:
        right: per domain which test images were answered right, bool `[N]`; may be empty.
        accuracy: per domain on the test images.
        trained: per domain the share of right answers in the last epoch's training steps, or of
            the finished network's where it was cut later; without the domains of which that epoch
            has none, or whose images were mixed in it.
        seen: per domain how many training images were answered, and the share of right answers,
            by the finished network; empty where it has no BatchNorm's statistics that would set it
            apart from those steps, or was cut since, and where an earlier prunion did not ask.
        images: of how many training images `trained` is, per domain.
        limit, uncut: the budget as a share of the whole, where it is one, and the share that
            learning left before the last cut.
        pruning: how the run was pruned; None where its files do not tell.
        made_by: the run's settings, classes and images; None where nobody knows.
    """

    right: Mapping[str, np.ndarray]
    accuracy: Mapping[str, float]
    trained: Mapping[str, float]
    images: Mapping[str, int]
    limit: float | None = None
    uncut: float = 1.0
    pruning: Pruning | None = None
    made_by: MadeBy | None = None
    seen: Mapping[str, tuple[int, float]] = field(default_factory=dict)


def comparable(baseline: Learned, pruned: Learned, name: str) -> bool:
    """Whether two runs' answers for a domain are to the same test images, but for the budget."""
    one, other = baseline.right.get(name), pruned.right.get(name)
    if one is None or other is None or not len(one) == len(other) > 0:
        return False
    return not not_paired(baseline.made_by, pruned.made_by, [name])


def read_learned(folder: Path) -> Learned | None:
    """What a finished run's folder tells; None where its record is not there or too old."""
    path = folder / RECORD
    if not path.is_file():
        return None
    record, made_by = read_json(path), read_made_by(folder)
    try:
        result, answers = record["result"], record["domains"]
        accuracy = {k: float(v) for k, v in result["accuracy"].items()}
        right = {
            name: bits_from_hex(found["right_bits"], int(found["images"]))
            for name, found in answers.items()
            if name in accuracy and "right_bits" in found
        }
        seen = {
            name: (int(found["images"]), float(found["accuracy"]))
            for name, found in record.get("seen", {}).items()
        }
        trained = _trained(folder / LOG, _unmixed(accuracy, made_by), result)
        images = {name: int(found["images"]["train"]) for name, found in result["data"].items()}
        if record.get("cut_later"):  # what those steps answered was another network's
            trained = {name: seen[name][1] for name in trained if name in seen}
            images |= {name: seen[name][0] for name in trained}
            seen = {}
        return Learned(
            right=right,
            accuracy=accuracy,
            trained=trained,
            images=images,
            limit=_share(result["budget"]),
            uncut=float(result["uncut"]),
            made_by=made_by,
            seen=seen,
        )
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, PrunionError):
        return None


def _share(budget: Mapping[str, Any]) -> float:
    """What was asked, however it was written, as a share of the backbone's cost; NaN: not told."""
    profile = "any" if budget["kind"] == "latency" else ""
    asked = BudgetConfig(budget["asked"], budget["kind"], profile=profile)
    return asked.allowed(1.0) / (1.0 if asked.is_fraction else budget.get("backbone") or math.nan)


def _unmixed(names: Iterable[str], made_by: MadeBy) -> list[str]:
    """Those whose training images are not mixed with others': a mixed one has no right answer."""
    try:
        config = RunConfig.from_checkpoint(made_by.get("config"))
    except PrunionError:  # an earlier prunion's, which mixed none, or another's
        return list(names)
    augment = {domain.name: domain.augment or config.train.augment for domain in config.domains}
    return [name for name in names if name not in augment or not augment[name].mixes]


def _trained(log: Path, names: list[str], result: Mapping[str, Any]) -> dict[str, float]:
    """Mean training accuracy by domain over the last epoch, empty where that is not known."""
    epochs, counted = int(result["epochs"][1]), result.get("steps")
    # An earlier prunion's epochs left out those of thinning after settling.
    fewer = counted is None and "accuracy_with_union" in (result.get("own") or {})
    if not log.is_file() or epochs < 1 or fewer:
        return {}
    last, keys = 0, {name: f"train_accuracy/{name}" for name in names}
    found: dict[str, list[tuple[int, float]]] = {name: [] for name in names}
    with log.open(encoding="utf-8") as lines:
        for text in lines:
            try:
                line = json_of(text)
                last = max(last, int(line["step"]))
            except (ValueError, KeyError, TypeError):  # the half line of a run that was killed
                continue
            for name, key in keys.items():
                if isinstance(line.get(key), (int, float)):
                    found[name].append((int(line["step"]), float(line[key])))
    begin = last * (epochs - 1) / epochs if counted is None else counted[1] - counted[0]
    means = {name: [v for step, v in steps if step >= begin] for name, steps in found.items()}
    return {name: float(np.mean(values)) for name, values in means.items() if values}
