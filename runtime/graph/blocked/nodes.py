"""Nodes of a blocked graph, written one after the other for one number of images.

Operations that know no domains take the batch as it is. Those with numbers of each image's own see
the same memory as one image of N times as many channels: grouped convolutions then give every
image weights of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from prunion.runtime.graph.blocked.tables import Affine, BlockedTables, blocked_weight, padded

if TYPE_CHECKING:
    import onnx

__all__ = ["BLOCKED_DOMAIN", "Activation", "BlockedNodes", "Layout"]

BLOCKED_DOMAIN = "com.microsoft.nchwc"
View = Literal["batch", "images", "lines"]


@dataclass(frozen=True)
class Activation:
    """What a convolution may end with, and its numbers."""

    kind: str
    numbers: tuple[float, ...] = ()


@dataclass(eq=False)
class Layout:
    """A blocked activation of N images; `names` by how its memory is looked at.

    `batch` is `[N, C, H, W]`, `images` `[1, N · C, H, W]`, `lines` `[1, N · C, 1, H · W]`, C filled
    up to whole blocks.
    """

    channels: int
    height: int
    width: int
    names: dict[View, str] = field(default_factory=dict)

    def same_shape(self, other: Layout) -> bool:
        """Whether an element of one has its place in the other."""
        sizes = (self.channels, self.height, self.width)
        return sizes == (other.channels, other.height, other.width)


class BlockedNodes:
    """The nodes, small constants and shared weights of a graph for `count` images."""

    def __init__(self, count: int, block: int, weights: dict[str, np.ndarray]) -> None:
        self.count = count
        self.block = block
        self.weights = weights
        self.tables = BlockedTables(block)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self._number = 0

    def fresh(self) -> str:
        """A name that nothing has."""
        self._number += 1
        return f"blocked_{self._number}"

    def emit(
        self,
        kind: str,
        inputs: Sequence[str],
        outputs: Sequence[str] = (),
        domain: str = "",
        **attributes: Any,
    ) -> str:
        """Add a node; the name of its first output."""
        from onnx import helper

        made = list(outputs) or [self.fresh()]
        name = f"{made[0]}_node"
        node = helper.make_node(kind, list(inputs), made, name, domain=domain, **attributes)
        self.nodes.append(node)
        return made[0]

    def reshaped(self, name: str, shape: Sequence[int]) -> str:
        """The same memory with another shape."""
        return self.emit("Reshape", [name, self.whole(shape)])

    def whole(self, numbers: Sequence[int]) -> str:
        """A constant of whole numbers."""
        name = "whole_" + "_".join(map(str, numbers))
        self.constants[name] = np.array(numbers, np.int64)
        return name

    def view(self, layout: Layout, view: View) -> str:
        """The name of an activation looked at in one way."""
        if view not in layout.names:
            width = padded(layout.channels, self.block)
            shape: Sequence[int] = (self.count, width, layout.height, layout.width)
            if view == "images":
                shape = (1, self.count * width, layout.height, layout.width)
            elif view == "lines":
                shape = (1, self.count * width, 1, layout.height * layout.width)
            layout.names[view] = self.reshaped(next(iter(layout.names.values())), shape)
        return layout.names[view]

    def into_blocks(self, name: str, channels: int, height: int, width: int) -> Layout:
        """A plain activation `[N, C, H, W]` of 4, 8, … channels."""
        made = self.emit("ReorderInput", [name], domain=BLOCKED_DOMAIN)
        return Layout(channels, height, width, {"batch": made})

    def out_of_blocks(self, layout: Layout, name: str) -> None:
        """The plain activation, as `name`."""
        source = self.view(layout, "batch")
        self.emit("ReorderOutput", [source], [name], BLOCKED_DOMAIN, channels=layout.channels)

    def weight(self, name: str, array: np.ndarray) -> str:
        """The shared weight `name` `[O, I, kh, kw]` in blocks, made once for all numbers of
        images."""
        made = f"{name}_blocked"
        if made not in self.weights:
            self.weights[made] = blocked_weight(array, self.block)
        return made

    def bias(self, name: str, array: np.ndarray | None) -> str:
        """A shared bias `[C]` filled up; an empty name where there is none."""
        if array is None:
            return ""
        made = f"{name}_bias"
        missing = padded(len(array), self.block) - len(array)
        self.constants[made] = np.pad(np.asarray(array, np.float32), (0, missing))
        return made

    def convolution(
        self,
        inputs: tuple[str, str, str],
        total: Layout | None,
        view: View,
        activation: Activation | None,
        **attributes: Any,
    ) -> str:
        """A convolution of `inputs` (activation, weight, bias or ""), `total` added to it."""
        names = list(inputs)
        if total is not None:
            names.append(self.view(total, view))
        elif not inputs[2]:
            names.pop()
        if activation is not None:
            attributes["activation"] = activation.kind
            if activation.numbers:
                attributes["activation_params"] = list(activation.numbers)
        return self.emit("Conv", names, domain=BLOCKED_DOMAIN, **attributes)

    def scaled(
        self, x: Layout, affine: Affine, total: Layout | None, activation: Activation | None
    ) -> Layout:
        """`x · scale + shift (+ total)` with each image's own numbers: a depthwise convolution."""
        inputs = (self.view(x, "lines"), *self.tables.add_norm(affine))
        width = self.count * padded(x.channels, self.block)
        made = self.convolution(
            inputs, total, "lines", activation, group=width, kernel_shape=[1, 1]
        )
        return Layout(x.channels, x.height, x.width, {"lines": made})

    def gated(self, x: Layout, gate: Layout) -> Layout:
        """`x` times `gate` `[N, C, 1, 1]`."""
        width = self.count * padded(x.channels, self.block)
        weight = self.reshaped(self.view(gate, "batch"), (width, 1, 1, 1))
        inputs = (self.view(x, "lines"), weight, "")
        made = self.convolution(inputs, None, "lines", None, group=width, kernel_shape=[1, 1])
        return Layout(x.channels, x.height, x.width, {"lines": made})
