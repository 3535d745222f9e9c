"""A mixed graph's nodes in their order, each written in blocks where it has such a form.

A convolution waits for what follows it (scale, shift, an addition, an activation), since one node
can do all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from prunion.runtime.graph.blocked.nodes import BLOCKED_DOMAIN, Activation, BlockedNodes, Layout
from prunion.runtime.graph.blocked.source import MixedGraph
from prunion.runtime.graph.blocked.tables import Affine, padded
from prunion.runtime.graph.inputs import attribute, list_attribute

if TYPE_CHECKING:
    import onnx

__all__ = ["write_nodes"]

# Element by element, and finite where the padding's zeros go in.
ELEMENTWISE = frozenset("Relu Clip Sigmoid HardSigmoid HardSwish Tanh LeakyRelu Elu".split())
POOLS = frozenset("MaxPool AveragePool GlobalAveragePool GlobalMaxPool".split())
PLANES = ([2, 3], [-2, -1], [-1, -2])
CHANNEL_AXES = (1, -3)
PASSED_ON = ("strides", "dilations", "pads")


@dataclass(frozen=True, eq=False)
class _Pending:
    """A convolution, or an affine alone, that may still take in what follows it."""

    node: onnx.NodeProto | None
    source: Layout | str
    shape: tuple[int, int, int]
    affine: Affine
    total: Layout | None = None


def write_nodes(source: MixedGraph, nodes: BlockedNodes, fold: float) -> None:
    """Write all of a graph's nodes to `nodes`; `fold` as `BlockedRewriter` has it."""
    walk = _Walk(source, nodes, fold)
    for node in source.model.graph.node:
        if not walk.takes(node):
            walk.keep(node)
    for value in source.model.graph.output:
        walk.make_plain(value.name)


class _Walk:
    def __init__(self, source: MixedGraph, nodes: BlockedNodes, fold: float) -> None:
        self.source, self.nodes, self.fold = source, nodes, fold
        self.blocked: dict[str, Layout] = {}
        self.pending: dict[str, _Pending] = {}
        self.plain: set[str] = set()

    def takes(self, node: onnx.NodeProto) -> bool:
        """Write a node in blocks, or let it wait; False where it must stay as it was."""
        kind = node.op_type
        if kind == "Conv":
            return self._conv(node)
        if kind in ("Mul", "Add"):
            return self._binary(node)
        if kind in ELEMENTWISE:
            return self._elementwise(node)
        if kind in POOLS:
            return self._pool(node)
        if kind == "ReduceMean":
            return self._mean(node)
        return kind == "Concat" and self._concat(node)

    def keep(self, node: onnx.NodeProto) -> None:
        """Write a node as it was."""
        for name in node.input:
            self.make_plain(name)
        self.nodes.nodes.append(node)

    def make_plain(self, name: str) -> None:
        """See to it that a tensor exists as it was."""
        layout = self._written_layout(name)
        if layout is not None and name not in self.plain:
            self.nodes.out_of_blocks(layout, name)
            self.plain.add(name)

    def _written_layout(self, name: str) -> Layout | None:
        """The blocked form of a tensor that has one already; what waits is written."""
        waiting = self.pending.pop(name, None)
        if waiting is not None:
            self.blocked[name] = self._written(waiting)
        return self.blocked.get(name)

    def _in_blocks(self, name: str) -> Layout | None:
        """The blocked form of an activation that can have one."""
        layout, shape = self._written_layout(name), self.source.shape(name)
        constant = self.source.array(name) is not None or self.source.columns(name) is not None
        if layout is not None or shape is None or constant:
            return layout
        if shape[0] >= self.nodes.block and shape[0] % 4 == 0:
            layout = self.blocked[name] = self.nodes.into_blocks(name, *shape)
            self.plain.add(name)
        return layout

    def _conv(self, node: onnx.NodeProto) -> bool:
        weight, shape = self.source.array(node.input[1]), self.source.shape(node.output[0])
        biased = len(node.input) > 2 and bool(node.input[2])
        bias = self.source.array(node.input[2]) if biased else None
        if weight is None or shape is None or weight.dtype != np.float32 or weight.ndim != 4:
            return False
        if (biased and bias is None) or not _pads_by_numbers(node):
            return False
        groups, block, (out, given) = (
            attribute(node, "group", 1),
            self.nodes.block,
            weight.shape[:2],
        )
        depthwise = groups > 1 and given == 1 and out == groups
        if groups > 1 and not depthwise and (given % block or (out // groups) % block):
            return False
        x: Layout | str | None = self._in_blocks(node.input[0])
        # Weights of less than a block read plain channels, all others blocked ones.
        few = groups == 1 and given < block
        if few != (x is None):
            return False
        if x is None:
            self.make_plain(node.input[0])
            x = node.input[0]
        self.pending[node.output[0]] = _Pending(node, x, shape, Affine(out, bias=bias))
        return True

    def _binary(self, node: onnx.NodeProto) -> bool:
        """`Mul` or `Add`: of the bank's numbers, of two activations, or of one and its gate."""
        (first, second), (out,), adds = node.input, node.output, node.op_type == "Add"
        for x, other in ((first, second), (second, first)):
            columns = self.source.columns(other)
            if columns is not None:
                return self._affine(x, out, columns, "shift" if adds else "scale")
        if adds and first != second:
            for x, other in ((second, first), (first, second)):
                if x in self.pending and self._added(x, other, out):
                    return True
        left, right = self._written_layout(first), self._written_layout(second)
        if left is None or right is None or left.channels != right.channels:
            return False
        if left.same_shape(right):
            made = self.nodes.emit(
                node.op_type, [self.nodes.view(x, "batch") for x in (left, right)]
            )
            self.blocked[out] = replace(left, names={"batch": made})
            return True
        wide, gate = (left, right) if left.height > 1 else (right, left)
        if adds or (gate.height, gate.width) != (1, 1):
            return False
        self.blocked[out] = self.nodes.gated(wide, gate)
        return True

    def _affine(
        self, x: str, out: str, columns: np.ndarray, which: Literal["scale", "shift"]
    ) -> bool:
        waiting = self.pending.get(x)
        if waiting is not None and self.source.once(x) and waiting.total is None:
            affine = waiting.affine
            free = affine.shift is None and (which == "shift" or affine.scale is None)
            if free and len(columns) == affine.channels:
                del self.pending[x]
                made = affine.with_columns(which, columns)
                self.pending[out] = replace(waiting, affine=made)
                return True
        layout = self._in_blocks(x)
        if layout is None or len(columns) != layout.channels:
            return False
        shape = (layout.channels, layout.height, layout.width)
        affine = Affine(layout.channels).with_columns(which, columns)
        self.pending[out] = _Pending(None, layout, shape, affine)
        return True

    def _added(self, x: str, other: str, out: str) -> bool:
        """Let the convolution that makes `x` add `other` itself."""
        waiting = self.pending[x]
        if not self.source.once(x) or waiting.total is not None:
            return False
        total = self._in_blocks(other)
        if total is None or (total.channels, total.height, total.width) != waiting.shape:
            return False
        del self.pending[x]
        self.pending[out] = replace(waiting, total=total)
        return True

    def _elementwise(self, node: onnx.NodeProto) -> bool:
        x, out = node.input[0], node.output[0]
        activation = self._activation(node)
        if x in self.pending and self.source.once(x) and activation is not None:
            self.blocked[out] = self._written(self.pending.pop(x), activation)
            return True
        layout = self._written_layout(x)
        if layout is None or any(
            name and self.source.array(name) is None for name in node.input[1:]
        ):
            return False
        view, name = next(iter(layout.names.items()))
        made = self.nodes.emit(node.op_type, [name, *node.input[1:]], **_attributes(node))
        self.blocked[out] = replace(layout, names={view: made})
        return True

    def _activation(self, node: onnx.NodeProto) -> Activation | None:
        """What a convolution can do itself."""
        if node.op_type == "Relu":
            return Activation("Relu")
        if node.op_type == "Clip" and len(node.input) == 3:
            ends = [self.source.number(name) for name in node.input[1:]]
            if None not in ends:
                return Activation("Clip", tuple(x for x in ends if x is not None))
        return None

    def _pool(self, node: onnx.NodeProto) -> bool:
        layout, shape = self._written_layout(node.input[0]), self.source.shape(node.output[0])
        plain = len(node.output) == 1 and not attribute(node, "storage_order", 0)
        if layout is None or shape is None or not plain or not _pads_by_numbers(node):
            return False
        given = _attributes(node)
        given.pop("storage_order", None)
        source = self.nodes.view(layout, "batch")
        made = self.nodes.emit(node.op_type, [source], domain=BLOCKED_DOMAIN, **given)
        self.blocked[node.output[0]] = Layout(*shape, {"batch": made})
        return True

    def _mean(self, node: onnx.NodeProto) -> bool:
        axes = list_attribute(node, "axes")
        constant = self.source.array(node.input[1]) if len(node.input) > 1 else None
        if axes is None and constant is not None:
            axes = constant.tolist()
        layout = self._written_layout(node.input[0]) if axes in PLANES else None
        if layout is None:
            return False
        source, out = self.nodes.view(layout, "batch"), node.output[0]
        made = self.nodes.emit("GlobalAveragePool", [source], domain=BLOCKED_DOMAIN)
        mean = Layout(layout.channels, 1, 1, {"batch": made})
        if attribute(node, "keepdims", 1):
            self.blocked[out] = mean
            return True
        apart, shape = self.nodes.fresh(), self.nodes.whole((self.nodes.count, mean.channels))
        self.nodes.out_of_blocks(mean, apart)
        self.nodes.emit("Reshape", [apart, shape], [out])
        return True

    def _concat(self, node: onnx.NodeProto) -> bool:
        layouts = [self._written_layout(name) for name in node.input]
        known = [x for x in layouts if x is not None]
        sizes = {(x.height, x.width) for x in known}
        whole = all(x.channels % self.nodes.block == 0 for x in known[:-1])
        if len(known) < len(layouts) or len(sizes) != 1 or not whole:
            return False
        if attribute(node, "axis", 0) not in CHANNEL_AXES:
            return False
        made = self.nodes.emit("Concat", [self.nodes.view(x, "batch") for x in known], axis=1)
        channels = sum(x.channels for x in known)
        self.blocked[node.output[0]] = Layout(channels, *sizes.pop(), {"batch": made})
        return True

    def _written(self, x: _Pending, activation: Activation | None = None) -> Layout:
        """Write what waited."""
        nodes, affine = self.nodes, x.affine
        if x.node is None:
            assert isinstance(x.source, Layout)
            return nodes.scaled(x.source, affine, x.total, activation)
        array = self.source.array(x.node.input[1])
        assert array is not None
        weight = nodes.weight(x.node.input[1], array)
        given = {k: v for k, v in _attributes(x.node).items() if k in PASSED_ON}
        given["kernel_shape"] = list(array.shape[2:])
        groups = attribute(x.node, "group", 1)
        groups = padded(groups, nodes.block) if array.shape[1] == 1 and groups > 1 else groups
        outputs = padded(x.shape[0], nodes.block) * x.shape[1] * x.shape[2]
        small = nodes.weights[weight].size <= self.fold * outputs
        if affine.differs and small and isinstance(x.source, Layout):
            inputs = (nodes.view(x.source, "images"), *nodes.tables.add_folded(weight, affine))
            given["group"] = nodes.count * groups
            made = nodes.convolution(inputs, x.total, "images", activation, **given)
            return Layout(*x.shape, {"images": made})
        source = x.source if isinstance(x.source, str) else nodes.view(x.source, "batch")
        if not affine.differs:
            inputs = (source, weight, nodes.bias(x.node.output[0], affine.bias))
            made = nodes.convolution(inputs, x.total, "batch", activation, group=groups, **given)
            return Layout(*x.shape, {"batch": made})
        made = nodes.convolution((source, weight, ""), None, "batch", None, group=groups, **given)
        shared = Layout(*x.shape, {"batch": made})
        return nodes.scaled(shared, affine, x.total, activation)


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    from onnx import helper

    return {x.name: helper.get_attribute_value(x) for x in node.attribute}


def _pads_by_numbers(node: onnx.NodeProto) -> bool:
    """Whether its padding is told in numbers, not by what the result should be."""
    return all(x.name != "auto_pad" or x.s in (b"", b"NOTSET") for x in node.attribute)
