"""The images that sessions are asked about, and how far two answers to them are apart."""

from __future__ import annotations

import math

import numpy as np

from prunion.runtime.base import relative_error
from prunion.runtime.graph import GraphForm

__all__ = ["as_taken", "disagreement", "probe_pixels", "spread_domains"]

MOST_DOMAINS = 64
ABSENT = -1e30  # what a class that a domain has not may be at most: -inf, as a library writes it


def spread_domains(count: int) -> np.ndarray:
    """Which of `count` domains are asked: all, or 64 of them, evenly spread."""
    return np.linspace(0, count - 1, min(count, MOST_DOMAINS)).astype(np.int64)


def probe_pixels(count: int, form: GraphForm) -> np.ndarray:
    """`[N, H, W, 3]` uint8 noise, the same every time: every colour in a range of its own.

    Colours must differ, or a network that swaps them would hardly be noticed.
    """
    random = np.random.default_rng(0)
    ends = np.sort(random.integers(0, 256, (2, count, 1, 1, 3)), axis=0)
    ends[:, 0] = np.array([0, 255]).reshape(2, 1, 1, 1)  # and one image in the full range
    size = (count, form.spec.height, form.spec.width, 3)
    return random.integers(ends[0], ends[1], size, dtype=np.uint8, endpoint=True)


def as_taken(pixels: np.ndarray, form: GraphForm) -> np.ndarray:
    """`pixels` as a graph of that form takes images: raw, or normalised."""
    if form.image == "uint8":
        return form.prepare(pixels)
    scale, shift = np.split(form.pixels, 2)
    planes = np.ascontiguousarray((pixels * scale + shift).transpose(0, 3, 1, 2))
    return form.prepare(planes)


def disagreement(reference: np.ndarray, got: np.ndarray) -> float:
    """`max |Δ| / max |reference|` over the classes that a domain has, both `[N, C]`.

    Infinite where `got` has another shape, other classes, or values that are not finite.
    """
    own = np.isfinite(reference)
    if got.shape != own.shape:
        return math.inf
    if not np.isfinite(got[own]).all() or not (got[~own] < ABSENT).all():
        return math.inf
    return relative_error(reference[own], got[own])
