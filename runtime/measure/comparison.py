"""Which of two things that took turns is faster, as far as their blocks allow one to say so."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np

__all__ = ["MATTERS", "Comparison", "Verdict", "compare_blocks"]

Verdict = Literal["faster", "slower", "no difference that matters", "too noisy to say"]

# Two runs of one command differ by about this much, each within its own narrow interval: where
# memory happens to lie is drawn once for each process.
MATTERS = 0.03
LEAST_BLOCKS = 8  # an interval from fewer is too narrow
TRIMMED = 0.2
RESAMPLES = 2000
CONFIDENCE = 95.0


@dataclass(frozen=True)
class Comparison:
    """Time of `session` over time of `against` at one batch size: below 1 it is faster.

    Attributes:
        low, high: the 95 % confidence interval of `ratio`; None with too few blocks for one.
        verdict: about `session`.
        note: why the ratio is less sure than blocks that repeat it look; empty for nothing.
    """

    session: str
    against: str
    batch: int
    ratio: float
    low: float | None
    high: float | None
    verdict: Verdict
    note: str = ""


def compare_blocks(
    session: str,
    against: str,
    batch: int,
    ours: Sequence[np.ndarray],
    theirs: Sequence[np.ndarray],
    *,
    groups: int = 1,
) -> Comparison:
    """Compare the calls' milliseconds of two cases, given in blocks that were timed in turn.

    The ratio is the trimmed mean (a fifth off either end) of the logarithms of the ratios between
    the medians of blocks of one round. The interval is the percentile bootstrap over rounds
    (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, ch. 13; trimming as in Wilcox,
    "Introduction to Robust Estimation and Hypothesis Testing", 2012, §4.4): calls of one block
    share the machine's other load, so that blocks, not calls, are what is drawn. The percentiles
    are further out than 2.5 and 97.5 by what Student's t is wider than the normal distribution,
    since a bootstrap of few is too narrow (Hesterberg, "What Teachers Should Know About the
    Bootstrap", The American Statistician 69, 2015, §4).

    A call that other load interrupts takes many times as long, and a block's median is of one kind
    of call or the other: that of calls twice as long may be twenty times as long, in every round.
    Means grow by such load as the calls themselves do, so the same is computed of them. Where the
    two differ by more than matters, that of the means is the ratio, the interval holds those of
    both, and `note` says so.

    Args:
        groups: how many groups of as many rounds each there are, one after the other, where what
            is drawn once for a group (a process's memory) falls on all of its rounds: groups are
            drawn too, and rounds within them.
    """
    pairs = list(zip(ours, theirs, strict=True))
    drawn = _drawn(len(pairs), groups) if len(pairs) >= LEAST_BLOCKS else None
    middle, low, high = _estimate([np.median(a) / np.median(b) for a, b in pairs], drawn)
    mean, *ends = _estimate([np.mean(a) / np.mean(b) for a, b in pairs], drawn)
    apart = abs(math.log(mean / middle)) > math.log(1 + MATTERS)
    if low is None or high is None or not apart:
        return Comparison(session, against, batch, middle, low, high, _verdict(low, high))
    low, high = min(low, *ends), max(high, *ends)
    note = (
        f"{session} / {against}, batch {batch}: by the medians of blocks {middle:.3f} of the time, "
        f"by their means {mean:.3f}: other load interrupts some calls, so that the interval holds "
        "both; measure again on a quiet machine, or for longer"
    )
    return Comparison(session, against, batch, mean, low, high, _verdict(low, high), note)


def _estimate(
    ratios: Sequence[float], drawn: np.ndarray | None
) -> tuple[float, float, float] | tuple[float, None, None]:
    """What rounds say together, and the ends of its interval where rounds are `drawn` for one."""
    logs = np.log(ratios)
    found = float(np.exp(_trimmed(logs[None])[0]))
    if drawn is None:
        return found, None, None
    tail = 100 * _tail(len(logs))
    low, high = np.exp(np.percentile(_trimmed(logs[drawn]), [tail, 100 - tail]))
    return found, float(low), float(high)


def _drawn(rounds: int, groups: int) -> np.ndarray:
    """Places of rounds, `[RESAMPLES, rounds]`; `groups` divides `rounds`."""
    random, each = np.random.default_rng(0), rounds // groups
    group = random.integers(0, groups, (RESAMPLES, groups)).repeat(each, axis=1)
    return group * each + random.integers(0, each, group.shape)


def _tail(count: int) -> float:
    """The share outside of either end: Φ(-√(n / (n - 1)) · t) of t's own with n - 1 degrees."""
    normal, free = NormalDist(), count - 1
    z = normal.inv_cdf(1 - (1 - CONFIDENCE / 100) / 2)
    # Student's t in powers of 1 / free (Abramowitz and Stegun 1964, 26.7.5).
    t = z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
    return normal.cdf(-math.sqrt(count / free) * t)


def _trimmed(rows: np.ndarray) -> np.ndarray:
    """`[R, B]` → `[R]`."""
    cut = int(TRIMMED * rows.shape[1])
    found: np.ndarray = np.sort(rows, axis=1)[:, cut : rows.shape[1] - cut].mean(axis=1)
    return found


def _verdict(low: float | None, high: float | None) -> Verdict:
    """The whole interval must lie on one side of what matters, or within it."""
    if low is None or high is None:
        return "too noisy to say"
    if high < 1 - MATTERS:
        return "faster"
    if low > 1 + MATTERS:
        return "slower"
    if low >= 1 - MATTERS and high <= 1 + MATTERS:
        return "no difference that matters"
    return "too noisy to say"
