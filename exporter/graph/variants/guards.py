"""Constants that float16 takes for zero, and the divisions that they keep finite.

`x / (x.norm() + 1e-8)` and `F.normalize` add or clip to a number that float16 rounds to 0: a black
image would be divided by it.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import numpy_helper

from prunion.exporter.counts import WEIGHTED

__all__ = ["guard_constants", "guarding_nodes"]

ROUNDED = 0.05  # of a constant: more than that lost is not the constant any more
# What these read at this place they divide by, or have no finite value of where it is 0.
DIVISORS = {"Div": 1, "Reciprocal": 0, "Log": 0, "Pow": 0}
# What a norm is made of: squares and sums of small values, which float16 takes for 0 as well.
SHRINKING = frozenset(
    "Abs Mul Pow ReduceL1 ReduceL2 ReduceMean ReduceSum ReduceSumSquare Sqrt".split()
)


def guard_constants(graph: onnx.GraphProto) -> set[str]:
    """Names of single numbers that are not 0 and that float16 has no number near."""
    single = {i.name: i for i in graph.initializer if int(np.prod(i.dims)) == 1}
    for node in [node for node in graph.node if node.op_type == "Constant"]:
        for attribute in [a for a in node.attribute if a.name == "value"]:
            single[node.output[0]] = attribute.t
    return {name for name, tensor in single.items() if _is_rounded_away(tensor)}


def guarding_nodes(graph: onnx.GraphProto, small: Collection[str]) -> set[str]:
    """First outputs of the nodes from a constant of `small` to what divides by it, and of that one.

    They stay float32, for the small number is in all values between; so does the norm that it is
    added to.
    """
    makers = {name: node for node in graph.node for name in node.output}
    reached = set[str]()  # but no divisor comes out of a layer

    def divides(node: onnx.NodeProto) -> bool:
        return node.op_type in DIVISORS and (_divisor(node) in small or _divisor(node) in reached)

    for node in graph.node:
        if node.op_type not in WEIGHTED and any(x in small or x in reached for x in node.input):
            reached.update(node.output)
            if divides(node):
                reached.difference_update(node.output)  # what is divided is of a usual size
    kept = set[str]()
    for node in graph.node:
        if divides(node):
            kept.add(node.output[0])
            found = [_divisor(node)]
            while found:
                maker = makers.get(found.pop())
                if maker is not None and maker.output[0] not in kept:
                    kept.add(maker.output[0])
                    found.extend(x for x in maker.input if x in reached or _shrinks(makers.get(x)))
    return kept


def _shrinks(node: onnx.NodeProto | None) -> bool:
    return node is not None and node.op_type in SHRINKING


def _divisor(node: onnx.NodeProto) -> str:
    return str(node.input[DIVISORS[node.op_type]])


def _is_rounded_away(tensor: onnx.TensorProto) -> bool:
    if tensor.data_type != onnx.TensorProto.FLOAT:
        return False
    value = float(numpy_helper.to_array(tensor).reshape(-1)[0])
    lost = abs(float(np.float16(value)) - value)
    return abs(value) < 1 and lost > ROUNDED * abs(value)
