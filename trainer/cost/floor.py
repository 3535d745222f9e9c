"""`[budget] floor`: the share of every width that the union keeps before anything else."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from prunion.runtime.bundle import UnitTable

__all__ = ["floor_account", "floor_units"]

ROUNDING = 1e-9  # 0.7 · 10 is a little more than 7 to a computer


def floor_units(
    table: UnitTable, share: float, score: np.ndarray, used: np.ndarray | None = None
) -> np.ndarray:
    """The best `share` of the units of every width, `[U]` bool.

    Args:
        score: worth of each unit, `[U]`.
        used: units that come before the others of their width whatever their score, `[U]` bool.
    """
    best = np.zeros(table.count, dtype=bool)
    if not share:
        return best
    unused = np.zeros(table.count, dtype=bool) if used is None else ~used
    for members in table.widths:
        ranked = members[np.lexsort((-score[members], unused[members]))]
        best[ranked[: _least(share, members)]] = True
    return best


def floor_account(table: UnitTable, share: float, alive: np.ndarray) -> dict[str, Any]:
    """Whether the units `alive` `[U]` bool keep so much of every width.

    Returns:
        `asked`, `met`, `least`, the smallest share of a width that is kept, and the `layer` whose.
    """
    kept = [float(alive[members].mean()) for members in table.widths]
    narrowest = int(np.argmin(kept)) if kept else None
    return {
        "asked": share,
        "met": all(alive[members].sum() >= _least(share, members) for members in table.widths),
        "least": 1.0 if narrowest is None else kept[narrowest],
        "layer": "" if narrowest is None else _layer(table, table.widths[narrowest]),
    }


def _least(share: float, members: np.ndarray) -> int:
    return math.ceil(share * len(members) - ROUNDING)


def _layer(table: UnitTable, members: np.ndarray) -> str:
    """The first layer whose outputs a width has, or what else lies on it."""
    tensors = [layer.weight for layer in table.layers]
    for tensor, axis in sorted(table.slots, key=lambda key: (key[0] not in tensors, key[1])):
        if np.isin(members, table.slots[tensor, axis]).any():
            return tensor.removesuffix(".weight")
    return ""
