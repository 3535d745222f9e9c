"""A mixed graph rewritten for ONNX Runtime's CPU: its activations stay in the blocked layout.

As exported, the scale and shift that each image picks stand behind a convolution as `Mul` and
`Add`. ONNX Runtime takes them out of its blocked layout and cannot fuse them. Here they become
either a depthwise convolution behind the shared one, or part of weights of each image's own,
whichever moves less memory. What has no blocked form stays as it was, between two changes of
layout. The operators are those that ONNX Runtime's own optimiser writes, which nobody promises to
keep: whoever runs such a graph holds it to the plain one first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from prunion.runtime.graph.blocked.nodes import BLOCKED_DOMAIN, BlockedNodes
from prunion.runtime.graph.blocked.source import MixedGraph
from prunion.runtime.graph.blocked.tables import BlockedTables
from prunion.runtime.graph.blocked.walk import write_nodes
from prunion.runtime.graph.inputs import PER_REQUEST

if TYPE_CHECKING:
    import onnx

__all__ = ["FOLD", "BlockedGraph", "BlockedRewriter", "layout_probe"]

# Measured, with mobilenet_v2 at 96 and 224 pixels: less leaves large activations to be passed over
# once more, more copies large weights.
FOLD = 0.1


@dataclass(frozen=True, eq=False)
class BlockedGraph:
    """A graph for `count` images, fed everything: `image`, `domain`, tables of the plain graph,
    `tables.inputs` of each image's own, and the shared weights.

    Attributes:
        weights: the names of the shared weights that it takes.
        plain: of the plain graph's tables those that it takes.
    """

    count: int
    model: bytes
    tables: BlockedTables
    weights: tuple[str, ...]
    plain: tuple[str, ...]


class BlockedRewriter:
    """Rewrites one mixed graph for any number of images; `weights` are shared by all of them.

    Args:
        graph: a mixed graph whose tables are inputs with defaults.
        block: channels in a block of this CPU.
        fold: a layer's weights are copied for every image, with the image's scale in them, where
            they are at most so many times as large as its outputs.

    Raises:
        UnsupportedGraphError: it has no bank that scales anything.
        BundleError: the graph is no readable ONNX file.
    """

    def __init__(self, graph: bytes, block: int, fold: float = FOLD) -> None:
        self.block = block
        self.fold = fold
        self.weights: dict[str, np.ndarray] = {}
        self._source = MixedGraph(graph)

    def graph(self, count: int) -> BlockedGraph:
        """The graph for `count` images."""
        from onnx import helper, numpy_helper

        old, nodes = self._source.model, BlockedNodes(count, self.block, self.weights)
        write_nodes(self._source, nodes, self.fold)
        written = _needed(nodes.nodes, [x.name for x in old.graph.output])
        read = {name for node in written for name in node.input}
        model = type(old)(ir_version=old.ir_version)
        model.opset_import.extend(old.opset_import)
        model.opset_import.append(helper.make_opsetid(BLOCKED_DOMAIN, 1))
        graph, weights = model.graph, tuple(name for name in self.weights if name in read)
        graph.name = "blocked"
        graph.node.extend(written)
        graph.output.extend(old.graph.output)
        graph.input.extend(self._inputs(nodes, read))
        fed = {value.name for value in graph.input}
        graph.initializer.extend(
            numpy_helper.from_array(x, name) for name, x in nodes.constants.items() if name in read
        )
        graph.initializer.extend(
            x for x in old.graph.initializer if x.name in read and x.name not in fed
        )
        plain = tuple(
            x.name for x in old.graph.input if x.name in fed and x.name not in PER_REQUEST
        )
        return BlockedGraph(count, model.SerializeToString(), nodes.tables, weights, plain)

    def _inputs(self, nodes: BlockedNodes, read: set[str]) -> list[onnx.ValueInfoProto]:
        from onnx import TensorProto, helper

        found: list[onnx.ValueInfoProto] = []
        shapes: dict[str, Sequence[int]] = {}
        for value in self._source.model.graph.input:
            copy = type(value).FromString(value.SerializeToString())
            if value.name in PER_REQUEST:
                copy.type.tensor_type.shape.dim[0].dim_value = nodes.count
            if value.name in read or value.name in PER_REQUEST:
                found.append(copy)
        for own in nodes.tables.inputs:
            shapes[own.name] = nodes.tables.shape(own, self.weights, nodes.count)
        shapes |= {name: array.shape for name, array in self.weights.items() if name in read}
        return found + [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in shapes.items()
        ]


def _needed(nodes: Sequence[onnx.NodeProto], outputs: Sequence[str]) -> list[onnx.NodeProto]:
    """The nodes that the outputs hang on."""
    read, found = set(outputs), []
    for node in reversed(nodes):
        if read & set(node.output):
            found.append(node)
            read.update(node.input)
    return found[::-1]


def layout_probe() -> bytes:
    """A graph that changes four channels `image` into the blocked layout: `logits` has a block."""
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info
    node = helper.make_node("ReorderInput", ["image"], ["logits"], domain=BLOCKED_DOMAIN)
    inputs = [value("image", TensorProto.FLOAT, [1, 4, 1, 1])]
    outputs = [value("logits", TensorProto.FLOAT, None)]
    graph = helper.make_graph([node], "layout", inputs, outputs)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(BLOCKED_DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    return bytes(model.SerializeToString())
