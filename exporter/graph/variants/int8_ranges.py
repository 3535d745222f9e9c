"""Convolutions whose channels all reach the same range, so that eight bits do for their outputs.

Before its per-domain scale a convolution's channels differ widely in size, and one step for all of
them drowns the small ones. Each output channel is divided by the largest value that calibration
saw, and its columns of the gathered bank row are multiplied by it: the same function, and the bank
keeps the values that every other graph has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from prunion.exporter.graph.probe import open_graph

__all__ = ["divided_tensors", "equalise"]


def equalise(model: onnx.ModelProto, batches: Sequence[Mapping[str, np.ndarray]]) -> None:
    """Even out the ranges of the convolutions in front of the bank's scales, in place.

    Args:
        batches: calibration batches of `image` and `domain`. A graph without a bank (one domain,
            BatchNorm folded) is left as it is.
    """
    graph = model.graph
    columns = _scale_columns(graph)
    if not columns:
        return
    ranges = _ranges(model, list(columns), batches)
    weights = {i.name: i for i in graph.initializer}
    makers = {out: node for node in graph.node for out in node.output}
    factors = np.ones(weights["bank"].dims[1], np.float32)
    for name, (offset, size) in columns.items():
        largest = np.where(ranges[name] > 0, ranges[name], 1).astype(np.float32)
        factors[offset : offset + size] = largest
        for tensor in makers[name].input[1:]:
            value = numpy_helper.to_array(weights[tensor])
            even = value / largest.reshape(-1, *([1] * (value.ndim - 1)))
            weights[tensor].CopyFrom(numpy_helper.from_array(even.astype(np.float32), tensor))
    _scale_rows(graph, factors)


def divided_tensors(graph: onnx.GraphProto) -> dict[str, slice]:
    """The weights and biases that `equalise` divides, and by which part of `bank_ranges`."""
    makers = {out: node for node in graph.node for out in node.output}
    return {
        tensor: slice(offset, offset + size)
        for name, (offset, size) in _scale_columns(graph).items()
        for tensor in makers[name].input[1:]
    }


def _scale_columns(graph: onnx.GraphProto) -> dict[str, tuple[int, int]]:
    """Offset and size in the bank of the scales behind each convolution that only they read."""
    split = next((n for n in graph.node if n.op_type == "Split" and _from_bank(graph, n)), None)
    if split is None:
        return {}
    values = {i.name: i for i in graph.initializer}
    sizes = numpy_helper.to_array(values[split.input[1]])
    offsets = np.cumsum([0, *sizes])
    parts = {name: i for i, name in enumerate(split.output)}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    shared = {name for name, nodes in readers.items() if len(nodes) > 1}
    found = {}
    for node in graph.node:
        if node.op_type != "Conv" or any(name in shared for name in node.input[1:]):
            continue
        uses = readers.get(node.output[0], [])
        part = [name for name in uses[0].input if name in parts] if len(uses) == 1 else []
        # A norm of several convolutions has one scale for all of their ranges.
        if len(part) == 1 and uses[0].op_type == "Mul" and part[0] not in shared:
            index = parts[part[0]]
            found[node.output[0]] = (int(offsets[index]), int(sizes[index]))
    return found


def _from_bank(graph: onnx.GraphProto, node: onnx.NodeProto) -> bool:
    makers = {out: n for n in graph.node for out in n.output}
    while node.input and node.input[0] in makers:
        node = makers[node.input[0]]
    return bool(node.input) and node.input[0] == "bank"


def _ranges(
    model: onnx.ModelProto, names: list[str], batches: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Largest absolute value of each channel of the named values, `[C]` each."""
    watched = onnx.ModelProto.FromString(model.SerializeToString())
    infos = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in names]
    watched.graph.output.extend(infos)
    session = open_graph(watched.SerializeToString())
    largest: dict[str, np.ndarray] = {}
    for batch in batches:
        for name, value in zip(names, session.run(names, dict(batch)), strict=True):
            seen = np.abs(value).max((0, 2, 3))
            largest[name] = np.maximum(largest.get(name, seen), seen)
    return largest


def _scale_rows(graph: onnx.GraphProto, factors: np.ndarray) -> None:
    place = next(i for i, n in enumerate(graph.node) if "bank" in n.input)
    row = graph.node[place].output[0]
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name == row:
                node.input[i] = "bank_row_ranged"
    graph.initializer.append(numpy_helper.from_array(factors, "bank_ranges"))
    node = helper.make_node("Mul", [row, "bank_ranges"], ["bank_row_ranged"], "bank_row_ranged")
    graph.node.insert(place + 1, node)
