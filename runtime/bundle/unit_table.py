"""The unit table: which slots of which tensors live or die together, and what they cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from prunion.runtime.base import Fields, given_twice, is_whole, shown
from prunion.runtime.errors import PrunionError

__all__ = ["Layer", "SlotUnits", "UnitTable"]

FORMAT_VERSION = 1
MOST = 1 << 24
# Of a tensor's axis: the unit that each index belongs to, -1 where it is never removed.
SlotUnits = dict[tuple[str, int], np.ndarray]


@dataclass(frozen=True)
class Layer:
    """A convolution or linear weight of the trunk.

    Attributes:
        weight: the tensor's name.
        shape: its full shape, `[out, in / groups, *kernel]`.
        positions: how often it is applied for one image: H·W of its output (of its input where it
            is transposed), of all parts where an image is cut into some.
    """

    weight: str
    shape: tuple[int, ...]
    positions: int


@dataclass(frozen=True)
class UnitTable:
    """Which slots live or die together, and the layers that cost something.

    Attributes:
        count: U, the number of units.
        slots: `slots[tensor, axis][index]` is the unit of that slot, or -1 (never removed).
    """

    count: int
    slots: SlotUnits
    layers: tuple[Layer, ...] = field(default=())

    @cached_property
    def widths(self) -> tuple[np.ndarray, ...]:
        """The units of each width, ascending; the widths in the order of their first units.

        Units that lie on exactly the same axes, equally often, are the channels of one width: a
        layer's outputs, for example, with all that reads them.
        """
        # Every axis splits the widths found so far by how often each unit lies on it.
        width = np.zeros(self.count, dtype=np.int64)
        found = 1
        for units in self.slots.values():
            here, times = np.unique(units[units >= 0], return_counts=True)
            _, part = np.unique(width[here] * (len(units) + 1) + times, return_inverse=True)
            width[here] = found + part
            found += len(here)
        order = np.argsort(width, kind="stable")
        ends = np.flatnonzero(np.diff(width[order])) + 1
        parts = np.split(order, ends) if self.count else []
        return tuple(sorted(parts, key=lambda members: int(members[0])))

    def round_up(
        self, alive: np.ndarray, multiple: int, score: np.ndarray | None = None
    ) -> np.ndarray:
        """Fill every width up to a multiple of `multiple`, as far as it has so many channels.

        A width of 50 can be slower than one of 64 in blocked convolutions. At least one channel of
        every width stays: a layer without channels has no answer.

        Args:
            alive: units to keep, `[U]` bool or 0/1; unchanged.
            score: which of the others come back first, `[U]`, the highest; the first ones without.

        Returns:
            `[U]` bool.
        """
        alive = np.array(alive, dtype=bool)
        score = np.zeros(self.count) if score is None else score
        for members in self.widths:
            kept = int(alive[members].sum())
            wanted = min(-(-max(kept, 1) // multiple) * multiple, len(members))
            off = members[~alive[members]]
            alive[off[np.argsort(-score[off], kind="stable")[: wanted - kept]]] = True
        return alive

    def kept(self, tensor: str, axis: int, size: int, alive: np.ndarray) -> np.ndarray:
        """Indices along `axis` that stay when `alive` `[U]` bool says which units live."""
        units = self.slots.get((tensor, axis))
        if units is None:
            return np.arange(size)
        return np.flatnonzero(np.append(alive, True)[units])

    def stride(self, tensor: str, axis: int) -> int:
        """Width that goes with one unit along `axis`, the least; 0 where none is ever removed.

        More than 1 where units lie there several times, as on the outputs of a grouped convolution.
        """
        units = self.slots.get((tensor, axis), np.empty(0, dtype=np.int64))
        return int(np.gcd.reduce(np.unique(units[units >= 0], return_counts=True)[1], initial=0))

    def params(self, alive: np.ndarray) -> int:
        """Weights of the trunk's layers that remain (heads, bank and biases apart)."""
        return sum(self._weights(layer, alive) for layer in self.layers)

    def macs(self, alive: np.ndarray) -> int:
        """Multiply-accumulates of the trunk's layers for one image."""
        return sum(layer.positions * self._weights(layer, alive) for layer in self.layers)

    def _weights(self, layer: Layer, alive: np.ndarray) -> int:
        total = 1
        for axis, size in enumerate(layer.shape):
            total *= len(self.kept(layer.weight, axis, size, alive))
        return total

    def to_json(self) -> dict[str, Any]:
        """The value of `units.json`."""
        return {
            "format_version": FORMAT_VERSION,
            "count": self.count,
            "slots": [
                {"tensor": tensor, "axis": axis, "units": units.tolist()}
                for (tensor, axis), units in self.slots.items()
            ],
            "layers": [
                {"weight": x.weight, "shape": list(x.shape), "positions": x.positions}
                for x in self.layers
            ],
        }

    @classmethod
    def from_json(
        cls, value: Any, where: str = "the unit table", error: type[PrunionError] = PrunionError
    ) -> UnitTable:
        """Read back `to_json`. Raises `error`, with `where`, on anything out of place."""
        top = Fields(value, "", where, error, "copy or write it again")
        if top.integer("format_version", 0, 1 << 30) != FORMAT_VERSION:
            raise top.fail("format_version", f"is not {FORMAT_VERSION}, which this prunion reads")
        count = top.integer("count", 0, MOST)
        pairs = [_slots(item) for item in top.each("slots", MOST)]
        slots = dict(pairs)
        if (twice := given_twice(key for key, _ in pairs)) is not None:
            raise top.fail("slots", f"list axis {twice[1]} of {shown(twice[0])} twice")
        held = sum(map(len, slots.values()))
        # Arrays of `count` are made of it: a few bytes must not ask for gigabytes.
        if count > held or any(len(units) and units.max() >= count for units in slots.values()):
            raise top.fail("slots", f"do not hold {count} units")
        return cls(count, slots, tuple(map(_layer, top.each("layers", MOST))))


def _slots(item: Fields) -> tuple[tuple[str, int], np.ndarray]:
    units = item.items("units", MOST)
    if not all(is_whole(unit, -1, MOST) for unit in units):
        raise item.fail("units", "must be whole numbers")
    return (item.text("tensor"), item.integer("axis", 0, 8)), np.array(units, dtype=np.int64)


def _layer(item: Fields) -> Layer:
    shape = item.items("shape", 8)
    if not all(is_whole(size, 0, MOST) for size in shape):
        raise item.fail("shape", "must be whole numbers")
    return Layer(item.text("weight"), tuple(shape), item.integer("positions", 0, 1 << 40))
