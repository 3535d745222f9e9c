"""The unit table: which slots of which tensors live or die together, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prunion.runtime.errors import PrunionError

__all__ = ["Layer", "UnitTable"]

FORMAT_VERSION = 1
Slots = dict[tuple[str, int], np.ndarray]


@dataclass(frozen=True)
class Layer:
    """A convolution or linear weight of the trunk.

    Attributes:
        weight: the tensor's name.
        shape: its full shape, `[out, in / groups, *kernel]`.
        positions: output positions it is applied at for one image (H·W of its output).
    """

    weight: str
    shape: tuple[int, ...]
    positions: int


@dataclass(frozen=True)
class UnitTable:
    """Unit → slots, kept as slot → unit: `slots[tensor, axis][index]` is a unit or -1 (fixed)."""

    count: int
    slots: Slots
    layers: tuple[Layer, ...] = field(default=())

    def kept(self, tensor: str, axis: int, size: int, alive: np.ndarray) -> np.ndarray:
        """Indices along `axis` that stay when `alive` `[U]` bool says which units live."""
        units = self.slots.get((tensor, axis))
        if units is None:
            return np.arange(size)
        return np.flatnonzero(np.append(alive, True)[units])

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
    def from_json(cls, value: Mapping[str, Any]) -> UnitTable:
        """Read back `to_json`. Raises PrunionError on anything out of place."""
        try:
            if value["format_version"] != FORMAT_VERSION:
                raise PrunionError(
                    f"the unit table has format_version {value['format_version']!r}, "
                    f"this prunion reads {FORMAT_VERSION}"
                )
            count = int(value["count"])
            slots: Slots = {}
            for entry in value["slots"]:
                units = np.asarray(entry["units"], dtype=np.int64)
                if units.ndim != 1 or (len(units) and not -1 <= units.min() <= units.max() < count):
                    raise PrunionError(f"the unit table of {entry['tensor']!r} is out of range")
                slots[str(entry["tensor"]), int(entry["axis"])] = units
            layers = tuple(
                Layer(str(x["weight"]), tuple(int(n) for n in x["shape"]), int(x["positions"]))
                for x in value["layers"]
            )
        except (KeyError, TypeError, ValueError, OverflowError) as exc:
            raise PrunionError(f"the unit table is damaged ({exc!r}): write it again") from None
        return cls(count, slots, layers)
