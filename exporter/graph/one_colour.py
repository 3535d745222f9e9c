"""Images of one colour, which every form must have a finite answer of where torch has one.

Noise reaches every channel, and never a place where nothing is: there a network that divides by
what it computes lives by a constant such as `+ 1e-8`, which a form may have lost.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prunion.exporter.graph.probe import Probe
from prunion.runtime.errors import VerificationError

__all__ = ["check_one_colour", "one_colour_probe"]

LEVELS = (0, 255, 128)  # black, white, grey


def one_colour_probe(
    size: tuple[int, int], mean: Sequence[float], std: Sequence[float], *, domains: int
) -> Probe:
    """Black, white and grey for each domain."""
    levels = np.repeat(np.array(LEVELS, np.uint8), domains)
    pixels = np.broadcast_to(levels[:, None, None, None], (len(levels), *size, 3)).copy()
    rows = np.tile(np.arange(domains, dtype=np.int64), len(LEVELS))
    return Probe.of(pixels, mean, std, rows)


def check_one_colour(
    reference: np.ndarray, other: np.ndarray, probe: Probe, names: Sequence[str], what: str
) -> None:
    """Raise VerificationError where `reference` `[N, Cmax]` is finite and `other` is not.

    How far they are apart is not asked: behind a norm, what is left of one colour is rounding.
    """
    lost = np.isfinite(reference) & ~np.isfinite(other)
    if lost.any():
        name = names[int(probe.domains[lost.any(1)][0])]
        raise VerificationError(
            f"domain {name}: {what} has no finite answer of an image of one colour, and the "
            "trained network has: give the network's smallest constants, such as those added "
            "before a division, larger values"
        )
