"""What pruning cost in points, how sure that is, and both in words.

The two networks answer the same test images, so that only images on which they differ tell
anything. The interval is Wald's for paired shares with half an image added to each cell: Agresti
and Min 2005, "Simple improved confidence intervals for comparing matched proportions", Statistics
in Medicine 24. Of few images that differ it may leave out 0 although a coin would do the same, so
McNemar's exact test is asked too, and where that is not sure the interval is widened to hold 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

__all__ = ["Loss", "domain_losses", "lost_line", "mean_loss", "normal_of"]

LEVEL = 0.05  # how often chance alone may look like a difference
DRAWS = 10_000  # of coins that stand for chance

Answers = Mapping[str, tuple[np.ndarray, np.ndarray]]  # by domain: right of the whole, the pruned


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


def domain_losses(answers: Answers) -> dict[str, Loss]:
    """What each domain lost; the intervals hold for all of them together (Bonferroni)."""
    level = LEVEL / max(1, len(answers))
    found = {}
    for name, pair in answers.items():
        lost, centre, error = _paired(*pair)
        found[name] = _loss(lost, centre, error, _chance(*_differing(*pair)), level)
    return found


def mean_loss(answers: Answers) -> Loss | None:
    """What the mean over domains lost; None without any."""
    if not answers:
        return None
    pairs = list(answers.values())
    if len(pairs) == 1:
        return _loss(*_paired(*pairs[0]), _chance(*_differing(*pairs[0])), LEVEL)
    lost, centre, errors = np.array([_paired(*pair) for pair in pairs]).T
    error = math.sqrt(float((errors**2).sum())) / len(pairs)
    return _loss(float(lost.mean()), float(centre.mean()), error, _mean_chance(pairs), LEVEL)


def normal_of(level: float = LEVEL) -> float:
    """How many standard errors chance stays within, but for `level` of the time, both sides."""
    return NormalDist().inv_cdf(1 - level / 2)


def _differing(whole: np.ndarray, pruned: np.ndarray) -> tuple[int, int]:
    """How many images the whole network alone answers right, and the pruned one alone."""
    return int((whole & ~pruned).sum()), int((pruned & ~whole).sum())


def _paired(whole: np.ndarray, pruned: np.ndarray) -> tuple[float, float, float]:
    """The share lost, the interval's centre and its standard error."""
    count, (lost, won) = len(whole), _differing(whole, pruned)
    spread = lost + won + 1 - (lost - won) ** 2 / (count + 2)
    return (lost - won) / count, (lost - won) / (count + 2), math.sqrt(spread) / (count + 2)


def _loss(lost: float, centre: float, error: float, chance: float, level: float) -> Loss:
    half = normal_of(level) * error
    low, high = max(-1.0, centre - half), min(1.0, centre + half)
    return Loss(lost, low, high) if chance < level else Loss(lost, min(low, 0.0), max(high, 0.0))


def _chance(lost: int, won: int) -> float:
    """McNemar's exact test: how often a coin divides the images that differ as unevenly."""
    count, most = lost + won, max(lost, won)
    if 2 * most - count <= 1:
        return 1.0
    whole = math.lgamma(count + 1) - count * math.log(2)
    each = (whole - math.lgamma(k + 1) - math.lgamma(count - k + 1) for k in range(most, count + 1))
    return 2 * math.fsum(map(math.exp, each))


def _mean_chance(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """The same of a mean over domains, whose images weigh differently: by drawn coins."""
    rng, drawn, seen = np.random.default_rng(0), np.zeros(DRAWS), 0.0
    for pair in pairs:
        images, (lost, won) = len(pair[0]), _differing(*pair)
        drawn += (2 * rng.binomial(lost + won, 0.5, DRAWS) - (lost + won)) / images
        seen += (lost - won) / images
    as_far = int((np.abs(drawn) >= abs(seen) - 1e-9).sum())
    return (1 + as_far) / (1 + DRAWS)


# --- words ----------------------------------------------------------------------------------------


def lost_line(
    loss: Loss | None, domains: Mapping[str, Loss], images: int, unknown: Sequence[str] = ()
) -> str:
    """What pruning cost, in words.

    Args:
        loss: of the mean; None where it is not known.
        images: test images of all domains.
        unknown: domains of which a baseline tells nothing; empty without a baseline.
    """
    sure = {name: x for name, x in domains.items() if x.low > 0}
    most = max(sure, key=lambda name: sure[name].lost, default="")
    figures = _bracketed(sure[most]) if sure else ""
    if loss is None:
        told = "what pruning cost is not known: --baseline trains every channel for as long"
        if unknown:
            told = (
                "what pruning cost is not known: the baseline cannot be set beside this run in "
                f"{', '.join(unknown)} (other test images or settings, or unknown ones); "
                "--baseline --force trains both anew"
            )
        return told + (f"; {most} surely lost {figures}" if sure else "")
    word, low, high = "lost", loss.low, loss.high
    if loss.lost < 0:  # the interval is told of what the word says
        word, low, high = "gained", -loss.high, -loss.low
    of = f"95 % interval {_points(low)} … {_points(high)}, {images:,} test images, one seed"
    told = f"pruning {word} {_points(abs(loss.lost))} points"
    if loss.sure:
        told += f" ({of})"
        if len(domains) > 1 and sure:
            told += f"; most in {most}: {figures}" if word == "lost" else f"; {most} lost {figures}"
        return told
    if len(domains) == 1 or not sure:
        return f"{told}, which may be chance ({of})"
    who = f"what {most} lost is not"
    if len(sure) > 1:
        who = f"what {len(sure)} domains lost is not, most in {most}"
    return f"{told} in the mean, which may be chance ({of}); {who}: {figures}"


def _points(value: float) -> str:
    return f"{round(100 * value, 2) + 0.0:.2f}"  # no "-0.00"


def _bracketed(loss: Loss) -> str:
    return f"{_points(loss.lost)} [{_points(loss.low)} … {_points(loss.high)}]"
