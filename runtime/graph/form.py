"""The forms a bundle's graph comes in: its heads, its kind of images, and what it must be fed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from prunion.runtime.base import HEADS, Heads, ImageType, Precision, available_bytes, takes_pixels
from prunion.runtime.bundle import (
    AdapterEntry,
    Bundle,
    ImageInput,
    Pack,
    UnitTable,
    adapter_row,
)
from prunion.runtime.errors import InputError
from prunion.runtime.graph.check import check_graph
from prunion.runtime.graph.inputs import ADAPTERS, input_types
from prunion.runtime.images import check_finite, check_pixels, check_shape, farthest_from_zero

__all__ = ["GraphForm", "form_of"]

NAMED = 10  # images of one warning
UNASKED = 64 << 20  # bytes of tables for which free memory is not looked at


@dataclass(frozen=True)
class GraphForm:
    """One graph of a bundle.

    Attributes:
        heads: `gathered`, `concatenated`, or `single` (one domain for good: no tables to feed).
        image: `float32` or `float16` (`[N, 3, H, W]` normalised), or `uint8` (`[N, H, W, 3]`).
        spec: size and normalisation of the images.
        adapters: columns of the table of adapters; without any the graph has none.
    """

    heads: Heads
    image: ImageType
    spec: ImageInput
    adapters: tuple[AdapterEntry, ...] = ()

    @property
    def single(self) -> bool:
        """Whether the graph knows one domain only and has no `domain` input."""
        return self.heads == "single"

    @property
    def needs(self) -> set[str]:
        """The inputs without a default."""
        return {"image"} if self.single else {"image", "domain"}

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape of one image."""
        size = (self.spec.height, self.spec.width)
        return (*size, 3) if self.image == "uint8" else (3, *size)

    def shapes(self, columns: int) -> dict[str, tuple[int, ...]]:
        """Every input's shape for a bank of `columns`, 0 for a size that the form leaves open."""
        found: dict[str, tuple[int, ...]] = {"image": (0, *self.image_shape)}
        if self.single:
            return found
        found |= {"domain": (0,), "bank": (0, columns), "head_bias": (0, 0)}
        found["head_weight"] = (0, 0, 0) if self.heads == "gathered" else (0, 0)
        if self.heads == "concatenated":
            found["head_columns"] = (0, 0)
        if self.image == "uint8":
            found["pixels"] = (0, 6)
        if self.adapters:
            found[ADAPTERS] = (0, sum(entry.size for entry in self.adapters))
        return found

    def prepare(self, array: np.ndarray) -> np.ndarray:
        """`array` as the graph takes it.

        A uint8 graph takes `[N, H, W, 3]` uint8, the others `[N, 3, H, W]` float32 that is
        normalised. Raises InputError for a wrong shape or type, and values beyond float16.
        """
        if self.image == "uint8":
            return check_pixels(array, self.spec)
        array = check_shape(array, self.spec)
        if self.image != "float16":
            return array
        with np.errstate(over="ignore"):
            half = array.astype(np.float16)
        if not np.isfinite(half).all():
            check_finite(array)
            raise InputError("the image array is beyond float16's 65504: normalise it first")
        return half

    def check_values(self, array: np.ndarray) -> None:
        """Raise InputError if images as `prepare` gives them hold NaN or infinity.

        Warns, once in a process, of numbers that no pixels have: of 0 … 255, say, that were not
        normalised. Apart from `prepare`, because it is cheapest on what is about to be read anyway.
        """
        if self.strange(array):  # not by their places: each other text would be another warning
            text = f"an image array holds {self._beyond}"
            warnings.warn(text, RuntimeWarning, stacklevel=2)

    def strange(self, array: np.ndarray) -> str:
        """Which of images as `prepare` gives them hold numbers that no pixels have, and what to do;
        "" if none. Raises InputError if one holds NaN or infinity."""
        if self.ordinary(array):
            return ""
        check_finite(array)
        places = [n for n, image in enumerate(array) if not self.ordinary(image)]
        named = ", ".join(map(str, places[:NAMED])) + (", …" if len(places) > NAMED else "")
        return f"image {named}: {self._beyond}"

    def ordinary(self, array: np.ndarray) -> bool:
        """Whether images as `prepare` gives them hold numbers that pixels may have, and no other.

        With room for what was normalised a little otherwise.
        """
        return self.image == "uint8" or farthest_from_zero(array) <= 2 * self.farthest

    @property
    def _beyond(self) -> str:
        return (
            f"numbers beyond twice what black or white is here, {self.farthest:.2f}: give "
            "(x / 255 - mean) / std, as the bundle's manifest says, or pixels as uint8; answers to "
            "others mean nothing"
        )

    def noise(self, count: int) -> np.ndarray:
        """`count` images of noise as the graph takes them; unlike a picture it reaches every
        channel."""
        random, shape = np.random.default_rng(0), (count, *self.image_shape)
        if self.image == "uint8":
            return random.integers(0, 256, shape, dtype=np.uint8)
        found = random.standard_normal(shape, dtype=np.float32)
        most = 1.99 * self.farthest  # as `ordinary` has it, however it is rounded
        return found.clip(-most, most).astype(self.image)

    def feeds(
        self, image: np.ndarray, rows: np.ndarray, tables: dict[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        """What a mixed session takes for `rows` `[N]`; without `tables` it uses its own."""
        if self.single:
            return {"image": image}
        return {"image": image, "domain": rows, **(tables or {})}

    def table_shapes(self, packs: Sequence[Pack]) -> dict[str, tuple[int, ...]]:
        """The shape of each of `tables`, which takes no memory to know."""
        if self.single:
            return {}
        counts = [len(pack.classes) for pack in packs]
        rows, features, most = len(packs), len(packs[0].head_weight), max(counts)
        found: dict[str, tuple[int, ...]] = {"bank": (rows, len(packs[0].bank))}
        found |= {"head_bias": (rows, most), "head_weight": (rows, features, most)}
        if self.heads == "concatenated":
            found |= {"head_columns": (rows, most), "head_weight": (features, sum(counts))}
        if self.image == "uint8":
            found["pixels"] = (rows, 6)
        if self.adapters:
            found[ADAPTERS] = (rows, sum(entry.size for entry in self.adapters))
        return found

    def tables(self, packs: Sequence[Pack]) -> dict[str, np.ndarray]:
        """The optional inputs for the domains `packs`, D of them in order.

        `bank [D, P]`, `head_bias [D, Cmax]` (-inf past a domain's classes) and `head_weight`
        `[D, F, Cmax]` (zero past them), all float32. Concatenated heads have `head_weight [F, T]`
        and `head_columns [D, Cmax]` int64; uint8 graphs also have `pixels [D, 6]` float32, and
        where the manifest lists adapters there is `adapters [D, A]` float32.

        Raises InputError where memory is short: each pack is small, and their product need not be.
        """
        if self.single:
            return {}
        # Eight bytes of a whole number, four of another; what is small is not worth asking for.
        shapes = self.table_shapes(packs)
        needed = sum((8 if x == "head_columns" else 4) * math.prod(shapes[x]) for x in shapes)
        if needed > UNASKED and needed > (free := available_bytes()):
            raise _no_room(shapes, needed, f", {free >> 20:,} MiB are free")
        try:
            return self._tables(packs)
        except MemoryError:  # a limit of the process, say
            raise _no_room(shapes, needed) from None

    def _tables(self, packs: Sequence[Pack]) -> dict[str, np.ndarray]:
        found = {"bank": np.stack([pack.bank for pack in packs]), **_heads(packs)}
        if self.heads == "concatenated":
            found |= _joined(packs)
        if self.image == "uint8":
            found["pixels"] = np.tile(self.pixels, (len(packs), 1))
        if self.adapters:
            found[ADAPTERS] = np.stack([adapter_row(self.adapters, pack.own) for pack in packs])
        return found

    @property
    def pixels(self) -> np.ndarray:
        """`[6]` float32: the scales `1 / (255 · std)` and shifts `-mean / std` of R, G and B."""
        mean, std = np.array(self.spec.mean), np.array(self.spec.std)
        return np.concatenate([1 / (255 * std), -mean / std]).astype(np.float32)

    @cached_property
    def farthest(self) -> float:
        """How far from 0 a normalised pixel can be."""
        ends = zip(self.spec.mean, self.spec.std, strict=True)
        return max(max(abs(mean), abs(1 - mean)) / std for mean, std in ends)

    def unit_table(self, table: UnitTable) -> UnitTable:
        """The unit table of a pinned graph, whose head is always a gathered one."""
        slots = dict(table.slots)
        if self.heads == "concatenated" and ("head_weight", 0) in slots:
            slots["head_weight", 1] = slots.pop(("head_weight", 0))
        return UnitTable(table.count, slots, table.layers)


def form_of(bundle: Bundle, precision: Precision = "fp32") -> GraphForm:
    """The form of one of the bundle's graphs, which is checked whole.

    Raises BundleError if there is no such graph, or it is none that this prunion would write.
    """
    place = bundle.graph(precision)  # refused if there is none
    manifest, graph = bundle.manifest, bundle.held_graph(precision).read()
    image: ImageType = "float32"
    if takes_pixels(precision):
        image = "uint8"
    elif precision == "fp16":  # the manifest does not say
        image = "float16" if input_types(graph).get("image") == "float16" else image
    form = GraphForm(HEADS[manifest.heads], image, manifest.input, manifest.adapters)
    check_graph(graph, form.shapes(manifest.bank_columns), str(place), image=image)
    return form


def _no_room(shapes: Mapping[str, tuple[int, ...]], needed: int, free: str = "") -> InputError:
    rows, most = shapes["head_bias"]
    return InputError(
        f"the tables of {rows:,} domains with up to {most:,} classes each take "
        f"{needed >> 20:,} MiB of memory{free}: add fewer domains, or none with so many classes"
    )


def _heads(packs: Sequence[Pack]) -> dict[str, np.ndarray]:
    most = max(len(pack.classes) for pack in packs)
    weight = np.zeros((len(packs), len(packs[0].head_weight), most), np.float32)
    bias = np.full((len(packs), most), -np.inf, np.float32)
    for row, pack in enumerate(packs):
        weight[row, :, : len(pack.classes)] = pack.head_weight
        bias[row, : len(pack.classes)] = pack.head_bias
    return {"head_weight": weight, "head_bias": bias}


def _joined(packs: Sequence[Pack]) -> dict[str, np.ndarray]:
    """One classifier over the classes of all domains, and which of them are a domain's own."""
    counts = [len(pack.classes) for pack in packs]
    columns, start = np.zeros((len(packs), max(counts)), np.int64), 0
    for row, count in enumerate(counts):
        columns[row, :count] = np.arange(start, start + count)
        start += count
    weight = np.concatenate([pack.head_weight for pack in packs], axis=1)
    return {"head_weight": np.ascontiguousarray(weight), "head_columns": columns}
