"""What pruning cost a run, how sure that is, and what to try next: a plain verdict.

The two networks answer the same test images, so that only images on which they differ tell
anything. The interval is Wald's for paired shares with half an image added to each cell: Agresti
and Min 2005, "Simple improved confidence intervals for comparing matched proportions", Statistics
in Medicine 24.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from prunion.runtime.base import json_of, read_json
from prunion.runtime.errors import PrunionError
from prunion.trainer.config import BudgetConfig

__all__ = ["Learned", "Limit", "Loss", "Verdict", "judge", "read_verdict"]

# What stands in the way of more: the budget, the images, too few epochs, or nothing that shows.
Limit = Literal["budget", "data", "epochs", "none", "unknown"]

NORMAL = 1.96  # two-sided 95 %
CLEAR = 0.01  # a point: less than that between shares of training images is not spoken of
GAP = 0.05  # between training and test images, from which on more images are what is lacking
UNLEARNED = 0.9  # of the training images: a network below it has not learned what it could see
OVERSHOOT = 1.1  # what learning may leave of the budget before the last cut, times the budget


@dataclass(frozen=True)
class Loss:
    """What pruning cost, as shares of 1, and the 95 % interval over other images.

    Attributes:
        lost: the baseline's accuracy less the pruned network's; negative where pruning helped.
    """

    lost: float
    low: float
    high: float

    @property
    def sure(self) -> bool:
        """Whether the interval excludes that nothing was lost or gained."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, eq=False)
class Learned:
    """What a verdict asks of one run.

    Attributes:
        right: per domain which test images were answered right, bool `[N]`; may be empty.
        accuracy: per domain on the test images.
        trained: per domain the share of right answers in the last epoch's training steps.
        images: training images per domain.
        limit, uncut: the budget as a share of the whole, where it is one, and the share that
            learning left before the last cut.
    """

    right: Mapping[str, np.ndarray]
    accuracy: Mapping[str, float]
    trained: Mapping[str, float]
    images: Mapping[str, int]
    limit: float | None = None
    uncut: float = 1.0


@dataclass(frozen=True)
class Verdict:
    """The verdict on a run.

    Attributes:
        loss: of the mean over domains; None without a baseline on the same images.
        domains: the same for each domain.
        images: test images of all domains.
        limit: what stands in the way of more accuracy.
        lines: all of it in words.
    """

    loss: Loss | None
    domains: dict[str, Loss]
    images: int
    limit: Limit
    lines: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def judge(pruned: Learned, baseline: Learned | None = None) -> Verdict:
    """Judge a pruned run, against the same run with every channel where there is one."""
    names = list(pruned.accuracy)
    domains = {
        name: _loss(baseline.right[name], pruned.right[name])
        for name in names
        if baseline is not None and _comparable(baseline, pruned, name)
    }
    loss = _mean(list(domains.values())) if len(domains) == len(names) else None
    images = sum(len(pruned.right[name]) for name in names if name in pruned.right)
    limit = _limit(pruned, baseline, loss)
    lines = [_lost_line(loss, domains, images), _limit_line(limit, pruned, baseline, loss)]
    if pruned.limit is not None and pruned.uncut > OVERSHOOT * pruned.limit:
        lines.append(
            f"learning left {pruned.uncut:.1%} where {pruned.limit:.1%} was asked, and the last "
            "cut took the rest: try a longer [train] ramp"
        )
    return Verdict(loss, domains, images, limit, tuple(line for line in lines if line))


def read_verdict(folder: Path, baseline: Path | None = None) -> Verdict | None:
    """The verdict on a finished run's folder; None where its record is not there or too old.

    Args:
        baseline: the folder of the same run with every channel.
    """
    pruned = _read(folder)
    if pruned is None:
        return None
    return judge(pruned, None if baseline is None else _read(baseline))


# --- figures --------------------------------------------------------------------------------------


def _comparable(baseline: Learned, pruned: Learned, name: str) -> bool:
    one, other = baseline.right.get(name), pruned.right.get(name)
    return one is not None and other is not None and len(one) == len(other) > 0


def _loss(whole: np.ndarray, pruned: np.ndarray) -> Loss:
    count = len(whole)
    lost = float(whole.mean() - pruned.mean())
    only_whole, only_pruned = int((whole & ~pruned).sum()), int((pruned & ~whole).sum())
    centre = (only_whole - only_pruned) / (count + 2)
    spread = only_whole + only_pruned + 1 - (only_whole - only_pruned) ** 2 / (count + 2)
    half = NORMAL * math.sqrt(spread) / (count + 2)
    return Loss(lost, max(-1.0, centre - half), min(1.0, centre + half))


def _mean(losses: list[Loss]) -> Loss | None:
    if not losses:
        return None
    centres = [(loss.low + loss.high) / 2 for loss in losses]
    half = math.sqrt(sum(((loss.high - loss.low) / 2) ** 2 for loss in losses)) / len(losses)
    centre = float(np.mean(centres))
    return Loss(float(np.mean([loss.lost for loss in losses])), centre - half, centre + half)


def _average(values: Mapping[str, float]) -> float | None:
    return float(np.mean(list(values.values()))) if values else None


def _learns_less(pruned: Learned, baseline: Learned) -> bool:
    """Whether the pruned network fits the training images less well, beyond chance."""
    names = [n for n in pruned.trained if n in baseline.trained and pruned.images.get(n)]
    if not names:
        return False
    less = float(np.mean([baseline.trained[n] - pruned.trained[n] for n in names]))
    noise = [
        (p.trained[n] * (1 - p.trained[n])) / p.images[n] for n in names for p in (pruned, baseline)
    ]
    return less > max(CLEAR, NORMAL * math.sqrt(sum(noise)) / len(names))


def _tested(learned: Learned) -> float | None:  # of what is trained: one epoch may lack domains
    return _average({n: x for n, x in learned.accuracy.items() if n in learned.trained})


def _limit(pruned: Learned, baseline: Learned | None, loss: Loss | None) -> Limit:
    trained, tested = _average(pruned.trained), _tested(pruned)
    if trained is None or tested is None:
        return "unknown"
    lost = loss is not None and loss.low > 0
    if lost and baseline is not None and _learns_less(pruned, baseline):
        return "budget"
    if trained - tested > GAP:
        return "data"
    if baseline is None or loss is None:
        return "unknown"
    whole = _average(baseline.trained)
    if not lost and whole is not None and max(whole, trained) < UNLEARNED:
        return "epochs"
    return "budget" if lost else "none"


# --- words ----------------------------------------------------------------------------------------


def _points(value: float) -> str:
    return f"{100 * value:.2f}"


def _lost_line(loss: Loss | None, domains: Mapping[str, Loss], images: int) -> str:
    if loss is None:
        return "what pruning cost is not known: --baseline trains every channel for as long"
    interval = f"95 % interval {_points(loss.low)} … {_points(loss.high)}"
    of = f"{interval}, {images:,} test images, one seed"
    if not loss.sure:
        word = "lost" if loss.lost >= 0 else "gained"
        told = f"pruning {word} {_points(abs(loss.lost))} points, which may be chance ({of})"
    elif loss.low > 0:
        told = f"pruning lost {_points(loss.lost)} points ({of})"
    else:
        told = f"pruning gained {_points(-loss.lost)} points ({interval} lost, {images:,} images)"
    name, most = max(domains.items(), key=lambda item: item[1].lost)
    if len(domains) > 1 and most.low > 0:
        told += (
            f"; most in {name}: {_points(most.lost)} [{_points(most.low)} … {_points(most.high)}]"
        )
    return told


def _limit_line(limit: Limit, pruned: Learned, baseline: Learned | None, loss: Loss | None) -> str:
    trained, tested = _average(pruned.trained), _tested(pruned)
    seen = "" if trained is None else f"{trained:.1%} of the training images"
    if limit == "budget":
        whole = None if baseline is None else _average(baseline.trained)
        against = "" if whole is None else f", {whole:.1%} with every channel"
        return (
            f"the budget is the limit: the network learns {seen}{against}. Try a larger [budget] "
            "limit, or a longer [train] settle"
        )
    if limit == "data":
        free = "" if loss is None or loss.low > 0 else ", and channels are not"
        return (
            f"the images are the limit{free}: the network learns {seen} and answers {tested:.1%} "
            "of the others. Try more training images"
            + ("" if free == "" else ", or a smaller [budget] limit, which may cost little")
        )
    if limit == "epochs":
        return f"learning is the limit: only {seen} are learned. Try more epochs, or another rate"
    if limit == "none":
        return "nothing shows that more channels would help: a smaller [budget] limit may do"
    return ""


# --- files ----------------------------------------------------------------------------------------


def _read(folder: Path) -> Learned | None:
    path = folder / "record.json"
    if not path.is_file():
        return None
    record = read_json(path)
    try:
        result, answers = record["result"], record["domains"]
        accuracy = {k: float(v) for k, v in result["accuracy"].items()}
        right = {
            name: np.unpackbits(
                np.frombuffer(bytes.fromhex(found["right_bits"]), np.uint8),
                count=int(found["images"]),
            ).astype(bool)
            for name, found in answers.items()
            if name in accuracy and "right_bits" in found
        }
        return Learned(
            right=right,
            accuracy=accuracy,
            trained=_trained(folder / "metrics.jsonl", list(accuracy), int(result["epochs"][1])),
            images={name: int(found["images"]["train"]) for name, found in result["data"].items()},
            limit=_share(result["budget"]),
            uncut=float(result["uncut"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, PrunionError):
        return None


def _share(budget: Mapping[str, Any]) -> float:
    """What was asked, however it was written, as a share of the backbone's cost; NaN: not told."""
    profile = "any" if budget["kind"] == "latency" else ""
    asked = BudgetConfig(budget["asked"], budget["kind"], profile=profile)
    return asked.allowed(1.0) / (1.0 if asked.is_fraction else budget.get("backbone") or math.nan)


def _trained(log: Path, names: list[str], epochs: int) -> dict[str, float]:
    """Mean training accuracy by domain over the last of `epochs`, empty without a log."""
    if not log.is_file() or epochs < 1:
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
    begin = last * (epochs - 1) / epochs
    means = {name: [v for step, v in steps if step >= begin] for name, steps in found.items()}
    return {name: float(np.mean(values)) for name, values in means.items() if values}
