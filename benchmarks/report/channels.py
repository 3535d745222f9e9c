"""Layer by layer: what is left of it, and who chose which of its channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prunion.runtime.base import bits_from_hex
from prunion.runtime.bundle import UnitTable

__all__ = ["channel_users", "chosen_shares", "layer_widths", "read_choices"]


def read_choices(record: Mapping[str, Any], names: Sequence[str]) -> np.ndarray | None:
    """What each domain chose of the kept units, bool `[D, U]`; None where nobody kept it."""
    if "choices" not in record:
        return None
    units, rows = int(record["choices"]["units"]), record["choices"]["domains"]
    return np.stack([bits_from_hex(rows[name], units) for name in names])


def _own(table: UnitTable, weight: str, width: int) -> np.ndarray:
    """The unit of each output channel of a layer; -1 for one that always stays."""
    units = table.slots.get((weight, 0))
    return np.full(width, -1) if units is None else np.asarray(units)


def layer_widths(table: UnitTable, alive: np.ndarray) -> dict[str, tuple[int, int]]:
    """Each layer's output channels before and after; units that stay are `alive`, `[U]` bool."""
    return {
        layer.weight.removesuffix(".weight"): (
            layer.shape[0],
            len(table.kept(layer.weight, 0, layer.shape[0], alive)),
        )
        for layer in table.layers
    }


def channel_users(
    table: UnitTable, alive: np.ndarray, chosen: np.ndarray
) -> dict[str, tuple[int, int, int, int]]:
    """Of each layer's kept channels, how many all domains chose, several, one, none."""
    usage = {}
    for layer in table.layers:
        units = _own(table, layer.weight, layer.shape[0])
        kept = units[(units >= 0) & alive[units]]
        if not len(kept):
            continue
        count, most = chosen[:, kept].sum(0), len(chosen)
        several = int(((count > 1) & (count < most)).sum())
        one = int((count == 1).sum()) if most > 1 else 0
        usage[layer.weight.removesuffix(".weight")] = (
            int((count == most).sum()),
            several,
            one,
            int((count == 0).sum()),
        )
    return usage


def chosen_shares(
    table: UnitTable, alive: np.ndarray, names: Sequence[str], chosen: np.ndarray
) -> dict[str, dict[str, float]]:
    """Of each layer's kept channels the share that a domain chose: domain → layer → share."""
    shares: dict[str, dict[str, float]] = {name: {} for name in names}
    for layer in table.layers:
        units = _own(table, layer.weight, layer.shape[0])
        kept = units[(units >= 0) & alive[units]]
        if len(kept):
            for name, row in zip(names, chosen, strict=True):
                shares[name][layer.weight.removesuffix(".weight")] = float(row[kept].mean())
    return shares
