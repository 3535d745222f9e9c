"""Which slices stay where more are on than the budget holds."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from prunion.runtime.bundle import UnitTable

__all__ = ["best_slices", "one_path"]


def best_slices(worth: torch.Tensor, prices: torch.Tensor, allowed: float) -> torch.Tensor:
    """The slices of most worth that together cost no more than is allowed, bool."""
    order = worth.argsort(descending=True, stable=True)
    within = prices[order].double().cumsum(0) <= allowed
    kept = torch.zeros_like(worth, dtype=torch.bool)
    kept[order] = within
    return kept & (worth > 0)


def one_path(scores: Mapping[str, torch.Tensor], table: UnitTable | None) -> torch.Tensor:
    """A slice of every weight, which make and read the same channels: images pass through them.

    Of every width it goes through the channel whose slices have most worth together.

    Args:
        scores: of each weight's slices, `[O, I]`.

    Returns:
        bool, the weights' slices one after the other.
    """
    values = {name: found.detach().cpu().double().numpy() for name, found in scores.items()}
    chosen = _channels(values, table)
    parts = []
    for name, value in values.items():
        rows, columns = (_through(name, axis, value.shape[axis], table, chosen) for axis in (0, 1))
        there = np.full(value.shape, -np.inf)
        there[np.ix_(rows, columns)] = value[np.ix_(rows, columns)]
        one = np.zeros(value.size, bool)
        one[int(there.argmax())] = True
        parts.append(torch.from_numpy(one))
    return torch.cat(parts).to(next(iter(scores.values())).device)


def _channels(values: Mapping[str, np.ndarray], table: UnitTable | None) -> np.ndarray:
    """A unit of every width, `[U]` bool."""
    if table is None:
        return np.zeros(0, bool)
    worth = np.zeros(table.count + 1)  # the last is for what belongs to no unit
    for name, value in values.items():
        for axis in (0, 1):
            units = table.slots.get((name, axis))
            if units is not None:
                np.add.at(worth, units, value.clip(min=0).sum(1 - axis))
    chosen = np.zeros(table.count, bool)
    for members in table.widths:
        chosen[members[int(worth[members].argmax())]] = True
    return chosen


def _through(
    name: str, axis: int, size: int, table: UnitTable | None, chosen: np.ndarray
) -> np.ndarray:
    """Where along a weight's axis the path may lie.

    Of channels that live together, as the groups' of a convolution, only the first: groups that
    read one another's others would not meet.
    """
    units = None if table is None else table.slots.get((name, axis))
    if table is None or units is None:
        return np.arange(size) if table is None or axis else np.arange(1)
    if not (units >= 0).any():
        return np.arange(1)
    found, first = np.unique(units, return_index=True)
    on = np.append(chosen, False)[found]
    return first[on] if on.any() else first[:1]
