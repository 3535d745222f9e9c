"""Sizes that a graph computes from its image's, as numbers: `x[: batch.shape[0]]`, `arange(n)`.

onnx's shape inference reads sizes from numbers that the file holds, and of those that nodes compute
from other tensors' shapes it follows few operators. What it leaves open is computed here, so that
it is no reason to refuse a network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

__all__ = ["infer_sizes", "known_sizes"]

ROUNDS = 8  # a size may come of a tensor whose own size had to be computed
MOST = 64  # numbers of a tensor that is a shape, or a part of one
# What sizes are computed with; asked only where what it makes is known to be no more than `MOST`.
COUNTING = frozenset(
    "Abs Add Cast Ceil Concat Constant ConstantOfShape Div Equal Expand Floor Gather Greater "
    "GreaterOrEqual Identity Less LessOrEqual Max Min Mod Mul Neg Not ReduceMax ReduceMin "
    "ReduceProd ReduceSum Reshape Shape Sign Size Slice Split Sqrt Squeeze Sub Sum Unsqueeze "
    "Where".split()
)


def infer_sizes(model: onnx.ModelProto) -> onnx.GraphProto:
    """The graph of `sizes.for_one_image` with every size that follows from the image's.

    Nodes that compute sizes are constants in it, and in `model`, where some were open.
    """
    from onnx import shape_inference

    everything = {"check_type": True, "strict_mode": True, "data_prop": True}
    graph = shape_inference.infer_shapes(model, **everything).graph
    for _ in range(ROUNDS):
        if not _put_numbers(model, graph):
            break
        graph = shape_inference.infer_shapes(model, **everything).graph
    return graph


def known_sizes(graph: onnx.GraphProto) -> dict[str, list[int]]:
    """The sizes of all tensors of an inferred graph of which each is a number."""
    values = (*graph.input, *graph.value_info, *graph.output)
    sizes = {value.name: dims for value in values if (dims := _known(value)) is not None}
    return sizes | {tensor.name: list(tensor.dims) for tensor in graph.initializer}


def _known(value: onnx.ValueInfoProto) -> list[int] | None:
    """A tensor's sizes, if all are numbers."""
    kind = value.type.tensor_type
    if not kind.HasField("shape") or not all(dim.HasField("dim_value") for dim in kind.shape.dim):
        return None
    return [dim.dim_value for dim in kind.shape.dim]


def _put_numbers(model: onnx.ModelProto, inferred: onnx.GraphProto) -> bool:
    """Put constants where nodes of `model` compute with sizes; whether that may tell more sizes."""
    from onnx import helper, numpy_helper

    sizes = known_sizes(inferred)
    if all(name in sizes for node in inferred.node for name in node.output if name):
        return False
    small = {name for name, dims in sizes.items() if math.prod(dims) <= MOST}
    found = {tensor.name for tensor in model.graph.initializer} & small
    counting, nodes, new = [], list(model.graph.node), False
    for node in nodes:
        if node.op_type not in COUNTING or not small.issuperset(node.output):
            continue
        if node.op_type in ("Shape", "Size"):
            if node.input[0] not in sizes:
                continue
        elif not found.issuperset(filter(None, node.input)):
            continue
        found.update(node.output)
        counting.append(node)
        new = new or node.op_type != "Constant"
    if not new:
        return False
    values = _values(model, counting, sizes)
    del model.graph.node[:]
    for node in nodes:
        if node.output[0] not in values:
            model.graph.node.append(node)
            continue
        for name in filter(None, node.output):
            value = numpy_helper.from_array(values[name])
            model.graph.node.append(helper.make_node("Constant", [], [name], value=value))
    return True


def _values(
    model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], sizes: Mapping[str, Sequence[int]]
) -> dict[str, np.ndarray]:
    """What `nodes` compute from each other, the file's numbers and the sizes of tensors."""
    from onnx import ModelProto, helper
    from onnx.reference import ReferenceEvaluator

    part = ModelProto(ir_version=model.ir_version)
    part.opset_import.extend(model.opset_import)
    graph = part.graph
    graph.name = "sizes"
    read = {name for node in nodes for name in node.input}
    graph.initializer.extend(x for x in model.graph.initializer if x.name in read)
    held = {tensor.name for tensor in graph.initializer}
    made = {name for node in nodes for name in node.output}
    graph.node.extend(nodes)
    feeds: dict[str, np.ndarray] = {}
    for node in nodes:
        name = node.input[0] if node.op_type in ("Shape", "Size") else ""
        if name and name not in held | made | feeds.keys():
            # Of the tensor's size and of no memory.
            feeds[name] = np.broadcast_to(np.float32(0), sizes[name])
            graph.input.append(helper.make_tensor_value_info(name, 1, sizes[name]))
    names = [name for node in nodes for name in node.output if name]
    graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    with np.errstate(all="ignore"):
        found = ReferenceEvaluator(part).run(names, feeds)
    return {name: np.asarray(value) for name, value in zip(names, found, strict=True)}
