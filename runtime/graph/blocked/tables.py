"""The layout in which ONNX Runtime's CPU keeps convolutions, and each domain's numbers in it.

An activation `[N, C, H, W]` lies in memory as `[N, C/B, H, W, B]`, C filled up to whole blocks of B
with zeros; its shape still says `[N, C, H, W]`. Weights `[O, I, kh, kw]` lie as
`[O/B, I/B, kh, kw, B of I, B of O]`, or as `[O/B, I, kh, kw, B of O]` where I is less than a block:
an image's colours, and depthwise convolutions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

__all__ = ["Affine", "BlockedTables", "OwnInput", "blocked_weight", "padded"]


def padded(channels: int, block: int) -> int:
    """`channels` up to whole blocks."""
    return -(-channels // block) * block


def blocked_weight(weight: np.ndarray, block: int) -> np.ndarray:
    """`[O, I, kh, kw]` float32 in blocks; its shape is the filled-up one in the plain order."""
    weight = _fill_up(weight, 0, block)
    if weight.shape[1] >= block:
        weight = _fill_up(weight, 1, block)
    count, given, *kernel = weight.shape
    if given < block:
        apart = weight.reshape(count // block, block, given, *kernel).transpose(0, 2, 3, 4, 1)
    else:
        apart = weight.reshape(count // block, block, given // block, block, *kernel)
        apart = apart.transpose(0, 2, 4, 5, 3, 1)
    return np.ascontiguousarray(apart).reshape(count, given, *kernel)


def _fill_up(array: np.ndarray, axis: int, block: int) -> np.ndarray:
    """`array` with zeros behind it along `axis`, up to whole blocks."""
    missing = padded(array.shape[axis], block) - array.shape[axis]
    if not missing:
        return array
    return np.pad(array, [(0, missing if place == axis else 0) for place in range(array.ndim)])


@dataclass(frozen=True, eq=False)
class Affine:
    """`x · scale + shift` of one layer, by the bank's columns; None for a scale of 1, a shift of 0.

    Attributes:
        bias: what the layer itself adds before, `[C]`.
    """

    channels: int
    scale: np.ndarray | None = None
    shift: np.ndarray | None = None
    bias: np.ndarray | None = None

    @property
    def differs(self) -> bool:
        """Whether it differs between domains."""
        return self.scale is not None or self.shift is not None

    def with_columns(self, which: Literal["scale", "shift"], columns: np.ndarray) -> Affine:
        """The same with columns of the bank as its scale or its shift."""
        if which == "scale":
            return replace(self, scale=columns)
        return replace(self, shift=columns)

    def scales(self, bank: np.ndarray) -> np.ndarray:
        """`[D, C]`."""
        if self.scale is None:
            return np.ones((len(bank), self.channels), np.float32)
        return np.asarray(bank[:, self.scale], np.float32)

    def shifts(self, bank: np.ndarray) -> np.ndarray:
        """`[D, C]`, the bias scaled and added."""
        found = np.zeros((len(bank), self.channels), np.float32)
        if self.shift is not None:
            found += bank[:, self.shift]
        if self.bias is not None:
            found += self.scales(bank) * self.bias
        return found


@dataclass(frozen=True, eq=False)
class OwnInput:
    """An input with numbers of each image's own: of one layer the scale, the shift or, where it
    has the name of a `weight`, that weight with the scale in it."""

    name: str
    affine: Affine
    kind: Literal["scale", "shift", "weight"]
    weight: str = ""


@dataclass
class BlockedTables:
    """What a blocked graph is fed of each image's domain, all of it made from the bank.

    Attributes:
        block: channels in a block.
        inputs: what the layers take, in their order.
    """

    block: int
    inputs: list[OwnInput] = field(default_factory=list)

    def add_norm(self, affine: Affine) -> tuple[str, str]:
        """A layer with an affine of its own: the inputs of its scale and its shift."""
        return self._add(affine, "scale"), self._add(affine, "shift")

    def add_folded(self, weight: str, affine: Affine) -> tuple[str, str]:
        """A layer whose weights hold the scale: the inputs of its weights and its shift."""
        return self._add(affine, "weight", weight), self._add(affine, "shift")

    def _add(
        self, affine: Affine, kind: Literal["scale", "shift", "weight"], weight: str = ""
    ) -> str:
        self.inputs.append(OwnInput(f"own_{len(self.inputs)}", affine, kind, weight))
        return self.inputs[-1].name

    def shape(
        self, own: OwnInput, weights: Mapping[str, np.ndarray], count: int
    ) -> tuple[int, ...]:
        """The shape of an input for `count` images."""
        if own.kind == "weight":
            first, *rest = weights[own.weight].shape
            return (count * first, *rest)
        width = count * padded(own.affine.channels, self.block)
        return (width, 1, 1, 1) if own.kind == "scale" else (width,)

    def rows(
        self, own: OwnInput, bank: np.ndarray, weights: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        """An input's numbers for the domains in `bank` `[D, P]`, one image's in a row: `[D, R]`."""
        if own.kind == "shift":
            return _fill_up(own.affine.shifts(bank), 1, self.block)
        scale = _fill_up(own.affine.scales(bank), 1, self.block)
        if own.kind == "scale":
            return scale
        weight = weights[own.weight]
        blocks = len(weight) // self.block
        factors = scale.reshape(len(bank), blocks, 1, self.block)
        rows: np.ndarray = weight.reshape(blocks, -1, self.block) * factors
        return rows.reshape(len(bank), -1)
