"""Small matrices of each domain's own, as a row of one table that a graph of all domains reads.

`y = f∗x + α_d∗x` beside a convolution (parallel adapters, whole or of low rank, `α_d = B_d·A_d`),
or `y = z + P_d·z` behind it, with z = f∗x (series adapters). A pack holds them as parts of its
own weights, by `PART:WEIGHT`; the row is all of them one after the other, as the manifest's
`adapters` says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from prunion.runtime.base import Fields, given_twice, shown
from prunion.runtime.errors import BundleError

__all__ = ["AdapterEntry", "AdapterKind", "adapter_parts", "adapter_row", "read_adapters"]

AdapterKind = Literal["beside", "behind"]
MAX_COUNT = 2**53
MAX_SIDE = 1 << 20
MOST_NUMBERS = 1 << 28  # of one domain: 1 GiB
FIX = "export it again"


@dataclass(frozen=True)
class AdapterEntry:
    """Columns `[offset, offset + size)` of the table: what one convolution has beside or behind it.

    Attributes:
        weight: the convolution's, `[outputs, inputs, k, k]`; one behind it takes `outputs` too.
        rank: 0 for a whole matrix `[outputs, inputs]`; else `A [rank, inputs]`, then
            `B [outputs, rank]`.
    """

    weight: str
    kind: AdapterKind
    outputs: int
    inputs: int
    rank: int
    offset: int

    @property
    def size(self) -> int:
        """How many numbers."""
        if self.rank:
            return self.rank * (self.inputs + self.outputs)
        return self.outputs * self.inputs

    @classmethod
    def from_json(cls, fields: Fields) -> AdapterEntry:
        """One entry of `adapters`."""
        kind = fields.get("kind")
        if kind not in get_args(AdapterKind):
            raise fields.fail("kind", f"is {shown(kind)}, this prunion knows beside and behind")
        return cls(
            weight=fields.text("weight"),
            kind=kind,
            outputs=fields.integer("outputs", 1, MAX_SIDE),
            inputs=fields.integer("inputs", 1, MAX_SIDE),
            rank=fields.integer("rank", 0, MAX_SIDE),
            offset=fields.integer("offset", 0, MAX_COUNT),
        )

    def to_json(self) -> dict[str, Any]:
        """The entry."""
        return {
            "weight": self.weight,
            "kind": self.kind,
            "outputs": self.outputs,
            "inputs": self.inputs,
            "rank": self.rank,
            "offset": self.offset,
        }

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Shape of each part of an own weight that makes it, in the row's order."""
        if self.kind == "behind":
            return {"behind": (self.outputs, self.outputs)}
        if not self.rank:
            return {"centre": (self.outputs, self.inputs)}
        return {
            "centre_down": (self.rank, self.inputs),
            "centre_up": (self.outputs, self.rank),
        }


def adapter_row(entries: Sequence[AdapterEntry], own: Mapping[str, np.ndarray]) -> np.ndarray:
    """`[A]` float32 from a pack's own parts; 0 where it has none for a convolution.

    Raises BundleError for a part that has no place in the row, or another shape.
    """
    shapes = {f"{part}:{e.weight}": shape for e in entries for part, shape in e.shapes.items()}
    for key, array in own.items():
        if key not in shapes:
            raise BundleError(
                f"the pack has {shown(key)}, for which this bundle has no place: export both again "
                "from one run"
            )
        if array.shape != shapes[key]:
            raise BundleError(
                f"the pack's {shown(key)} is {list(array.shape)}, expected "
                f"{list(shapes[key])}: {FIX}"
            )
    row = np.zeros(sum(entry.size for entry in entries), np.float32)
    for entry in entries:
        keys = [f"{part}:{entry.weight}" for part in entry.shapes]
        given = [key for key in keys if key in own]
        if given and len(given) < len(keys):
            raise BundleError(f"the pack has {shown(given[0])} alone: {FIX}")
        if given:
            values = np.concatenate([own[key].reshape(-1) for key in keys])
            row[entry.offset : entry.offset + entry.size] = values
    return row


def adapter_parts(entries: Sequence[AdapterEntry], row: np.ndarray) -> dict[str, np.ndarray]:
    """A pack's own parts from a row `[A]`."""
    found = {}
    for entry in entries:
        values = row[entry.offset : entry.offset + entry.size]
        for part, shape in entry.shapes.items():
            count = shape[0] * shape[1]
            found[f"{part}:{entry.weight}"] = np.ascontiguousarray(values[:count].reshape(shape))
            values = values[count:]
    return found


def read_adapters(top: Fields) -> tuple[AdapterEntry, ...]:
    """`adapters`, whose entries follow one another without a gap; nothing where there are none."""
    if "adapters" not in top.value:
        return ()
    entries, expected = [], 0
    for index, item in enumerate(top.items("adapters", 100_000)):
        fields = Fields(item, f"adapters[{index}]", top.source)
        entry = AdapterEntry.from_json(fields)
        if entry.offset != expected:
            raise fields.fail("offset", f"is {entry.offset} where {expected} must follow")
        if entry.kind == "behind" and (entry.rank or entry.inputs != entry.outputs):
            raise fields.fail("kind", "is 'behind', which is a whole square matrix")
        expected += entry.size
        if expected > MOST_NUMBERS:
            raise fields.fail("outputs", f"ends a table of {expected:,} numbers of each domain")
        entries.append(entry)
    keys = (f"{part}:{entry.weight}" for entry in entries for part in entry.shapes)
    if (twice := given_twice(keys)) is not None:
        raise top.fail("adapters", f"lists {shown(twice)} twice")
    return tuple(entries)
