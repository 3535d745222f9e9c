"""The 95 % interval of a mean difference under other seeds and other images, without drawing any.

Of each domain the resampled mean of its images has a distribution that is known exactly (a sum of
draws from a few values), and so has Student's t of whole degrees of freedom. Drawing them would add
noise of its own: of two rows of two seeds 20,000 draws put an end a twentieth of the interval's
half too far, over zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

__all__ = ["image_interval", "seed_interval", "t_cdf"]

LEVEL = 0.95
POINTS = 2**13  # of the grid that the images' distributions are added on
REACH = 12.0  # standard deviations to each side that the grid covers
Ends = tuple[float, float]


def image_interval(differences: Sequence[np.ndarray]) -> Ends:
    """Ends around the mean, of differences -1, 0 or 1, `[S, N]` of each domain: seeds, images.

    Those of the differences' negatives are the same, negated and swapped, to the bit.
    """
    # Basic bootstrap: how far a resample lies above the mean, the mean may lie above the truth.
    return -_upper(differences), _upper([-each for each in differences])


def seed_interval(means: np.ndarray) -> Ends:
    """Ends around the mean of `[S]`, which tells of other images too: each seed has its own."""
    half = _quantile(np.zeros(1), np.ones(1), _error(means), len(means) - 1)
    return -half, half


def t_cdf(t: np.ndarray, df: int) -> np.ndarray:
    """Student's t of whole degrees of freedom, in closed form (Abramowitz and Stegun 26.7.3, 4)."""
    angle = np.arctan(t / math.sqrt(df))
    squared, first = np.cos(angle) ** 2, 1 + df % 2
    term = np.cos(angle) if df % 2 else np.ones_like(angle)
    total = np.zeros_like(angle)
    for power in range(first, df, 2):
        total += term
        term = term * squared * power / (power + 1)
    inside = np.sin(angle) * total
    return np.asarray(0.5 + ((angle + inside) / math.pi if df % 2 else inside / 2))


def _error(means: np.ndarray) -> float:
    """The standard error of the mean of `[S]`; of one seed nothing is known of it: 0."""
    return float(means.std(ddof=1)) / math.sqrt(len(means)) if len(means) > 1 else 0.0


def _upper(differences: Sequence[np.ndarray]) -> float:
    """What the mean, resampled, exceeds itself by in 2.5 of 100 cases."""
    means = np.mean([each.mean(1) for each in differences], axis=0)
    places, weights = _images_resampled(differences)
    return _quantile(places, weights, _error(means), len(means) - 1)


def _images_resampled(differences: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Deviations of the mean over domains under other images, and how likely each is."""
    domains = [_domain_resampled(each) for each in differences]
    variance = sum(float(weights @ places**2) for places, weights in domains)
    if not variance:
        return np.zeros(1), np.ones(1)
    step = 2 * REACH * math.sqrt(variance) / len(domains) / POINTS
    spectrum = np.ones(POINTS // 2 + 1, np.complex128)
    for places, weights in domains:
        at = np.clip(places / len(domains) / step + POINTS / 2, 0, POINTS - 2)
        below = at.astype(np.intp)
        # Between two points of the grid a weight is shared out, which leaves the mean where it is.
        grid = np.bincount(below, weights * (below + 1 - at), POINTS)
        grid += np.bincount(below + 1, weights * (at - below), POINTS)
        spectrum = spectrum * np.fft.rfft(np.fft.ifftshift(grid))
    found = np.fft.fftshift(np.fft.irfft(spectrum, POINTS))
    held = found > 1e-15  # below is what rounding leaves
    return (np.flatnonzero(held) - POINTS // 2) * step, found[held] / found[held].sum()


def _domain_resampled(each: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Deviations of a domain's mean, `[S, N]`, under other images, and how likely each is.

    Only what the seeds agree on counts; what one seed answers by chance is in the seeds' spread.
    """
    seeds, count = each.shape
    image = each.mean(0)
    spread, agreed = float(image.var(ddof=1)) if count > 1 else 0.0, 1.0
    if seeds > 1 and spread > 0:
        chance = each - image - each.mean(1, keepdims=True) + each.mean()
        noise = float((chance**2).sum()) / ((seeds - 1) * (count - 1))
        agreed = math.sqrt(max(0.0, 1 - noise / seeds / spread))
    sums = each.sum(0).astype(np.intp)  # over seeds: whole numbers, of which `count` are drawn
    least = int(sums.min())
    once = np.bincount(sums - least) / count
    length = (len(once) - 1) * count + 1
    drawn = np.fft.irfft(np.fft.rfft(once, length + 1) ** count, length + 1)[:length]
    places = (least * count + np.arange(length)) / (seeds * count) - image.mean()
    return agreed * places, np.maximum(drawn, 0.0)


def _quantile(places: np.ndarray, weights: np.ndarray, error: float, df: int) -> float:
    """Below which the sum of a place and of `error` times Student's t is in 97.5 of 100 cases."""
    wanted = (1 + LEVEL) / 2
    if error == 0:
        if len(places) == 1:
            return float(places[0])
        return float(np.interp(wanted, np.cumsum(weights) - weights / 2, places))
    low = high = float(weights @ places)
    width = error + float(np.ptp(places)) / REACH
    while _share_below(high, places, weights, error, df) < wanted:
        low, high, width = high, high + width, 2 * width
    for _ in range(60):
        middle = (low + high) / 2
        if _share_below(middle, places, weights, error, df) < wanted:
            low = middle
        else:
            high = middle
    return high


def _share_below(
    at: float, places: np.ndarray, weights: np.ndarray, error: float, df: int
) -> float:
    return float(weights @ t_cdf((at - places) / error, df))
