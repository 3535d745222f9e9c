"""A single-domain graph folded by hand: what nobody can beat with the same channels."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

__all__ = ["fold_by_hand"]


def fold_by_hand(pinned: bytes) -> bytes:
    """A pinned graph (one bank row) with every scale and shift inside its convolution.

    Plain numpy on weights, no optimiser: `Conv`, `Mul`, `Add` become one `Conv` with a bias.
    Raises ValueError if a scale or shift does not follow a convolution.
    """
    model = onnx.load_from_string(pinned)
    graph = model.graph
    values = {x.name: numpy_helper.to_array(x) for x in graph.initializer}
    parts = _bank_parts(graph, values)
    made_by = {out: node for node in graph.node for out in node.output}
    gone: list[onnx.NodeProto] = []
    for add in [n for n in graph.node if n.op_type == "Add" and set(n.input) & parts.keys()]:
        mul = next(made_by[x] for x in add.input if x not in parts)
        conv = made_by[next(x for x in mul.input if x not in parts)]
        if (mul.op_type, conv.op_type) != ("Mul", "Conv") or len(conv.input) > 2:
            raise ValueError(f"{add.output[0]} follows no plain convolution")
        scale = parts[next(x for x in mul.input if x in parts)]
        shift = parts[next(x for x in add.input if x in parts)]
        weight = values[conv.input[1]] * scale.reshape(-1, 1, 1, 1)
        name = f"{conv.input[1]}.folded"
        graph.initializer.append(numpy_helper.from_array(weight, name))
        graph.initializer.append(numpy_helper.from_array(shift, f"{name}.bias"))
        conv.input[1] = name
        conv.input.append(f"{name}.bias")
        conv.output[0] = add.output[0]
        gone += [mul, add]
    for node in gone:
        graph.node.remove(node)
    _drop_unused(graph)
    if any(set(node.input) & parts.keys() for node in graph.node):
        raise ValueError("a scale or shift is left over")
    return bytes(model.SerializeToString())


def _bank_parts(graph: onnx.GraphProto, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The columns of the only bank row, by the name of the Split's outputs."""
    split = next(n for n in graph.node if n.op_type == "Split")
    ends = np.cumsum(values[split.input[1]])[:-1]
    return dict(zip(split.output, np.split(values["bank"][0], ends), strict=True))


def _drop_unused(graph: onnx.GraphProto) -> None:
    outputs = {x.name for x in graph.output}
    while True:
        read = outputs | {name for node in graph.node for name in node.input}
        unused = [node for node in graph.node if not read & set(node.output)]
        if not unused:
            break
        for node in unused:
            graph.node.remove(node)
    for initializer in [x for x in graph.initializer if x.name not in read]:
        graph.initializer.remove(initializer)
