"""From sums of layer times to a whole network's time: `total = scale · Σ layers + constant`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Fit", "fit_total"]


@dataclass(frozen=True)
class Fit:
    """How layers alone add up to networks.

    Attributes:
        scale: what a layer costs inside a network over what it costs alone.
        constant: milliseconds that no width changes: the call, the head, the image.
        mean_error, worst_error: relative, of each network predicted from all the others.
    """

    scale: float
    constant: float
    mean_error: float
    worst_error: float


def fit_total(layers: np.ndarray, measured: np.ndarray) -> Fit:
    """Fit `measured` `[N]` ms by `layers` `[N]` ms, the relative error squared, constant ≥ 0."""
    scale, constant = _line(layers, measured)
    errors = []
    for left_out in range(len(layers)):
        others = np.arange(len(layers)) != left_out
        slope, start = _line(layers[others], measured[others])
        errors.append(abs((slope * layers[left_out] + start) / measured[left_out] - 1))
    return Fit(scale, constant, float(np.mean(errors)), float(np.max(errors)))


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    a, b = x / y, 1 / y  # minimise Σ (scale · x / y + constant / y - 1)²
    (scale, constant), *_ = np.linalg.lstsq(np.stack([a, b], axis=1), np.ones(len(x)), rcond=None)
    if constant < 0 or scale <= 0:
        return float(a.sum() / (a * a).sum()), 0.0
    return float(scale), float(constant)
