"""Which slices stay where more are on than the budget holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from prunion.runtime.bundle import UnitTable

__all__ = ["best_slices", "in_vain", "one_path"]


def best_slices(worth: torch.Tensor, prices: torch.Tensor, allowed: float) -> torch.Tensor:
    """The slices of most worth that together cost no more than is allowed, bool."""
    order = worth.argsort(descending=True, stable=True)
    within = prices[order].double().cumsum(0) <= allowed
    kept = torch.zeros_like(worth, dtype=torch.bool)
    kept[order] = within
    return kept & (worth > 0)


def in_vain(
    bought: torch.Tensor,
    worth: torch.Tensor,
    shapes: Mapping[str, Sequence[int]],
    table: UnitTable | None,
    dead: np.ndarray | None,
) -> torch.Tensor:
    """Which slices to do without next time, `[S]` bool, after a cut that bought some of the dead.

    All those of a channel that makes or reads nothing: of the half of such channels that have the
    least worth, as what their slices cost may keep the others alive.

    Args:
        bought: the cut's slices, `[S]` bool, the weights' one after the other; likewise their
            worth.
        dead: channels that nothing makes or nothing reads then, `[U]` bool.
    """
    found = torch.zeros_like(bought)
    if table is None or dead is None:
        return found
    ends = np.cumsum([shape[0] * shape[1] for shape in shapes.values()])[:-1]

    def by_unit(values: torch.Tensor) -> np.ndarray:
        parts = np.split(values.cpu().double().numpy(), ends)
        each = zip(shapes.items(), parts, strict=True)
        return _by_unit({n: part.reshape(shape[0], shape[1]) for (n, shape), part in each}, table)

    units = np.flatnonzero(dead & (by_unit(bought) > 0))
    worst = units[by_unit(worth)[units].argsort(kind="stable")][: (len(units) + 1) // 2]
    gone = np.zeros(table.count + 1, bool)
    gone[worst] = True
    for (name, shape), part in zip(shapes.items(), found.tensor_split(ends.tolist()), strict=True):
        for axis in (0, 1):
            at = table.slots.get((name, axis))
            if at is not None:
                places = torch.from_numpy(np.flatnonzero(gone[at])).to(part.device)
                part.view(shape[0], shape[1]).index_fill_(axis, places, True)
    return found


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
    worth = _by_unit({name: value.clip(min=0) for name, value in values.items()}, table)
    chosen = np.zeros(table.count, bool)
    for members in table.widths:
        chosen[members[int(worth[members].argmax())]] = True
    return chosen


def _by_unit(values: Mapping[str, np.ndarray], table: UnitTable) -> np.ndarray:
    """The sum of the values `[O, I]` of all slices that make or read each unit, `[U]`."""
    total = np.zeros(table.count + 1)  # the last is for what belongs to no unit
    for name, value in values.items():
        for axis in (0, 1):
            units = table.slots.get((name, axis))
            if units is not None:
                np.add.at(total, units, value.sum(1 - axis))
    return total[:-1]


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
