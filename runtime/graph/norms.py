"""Per-domain `x · scale + shift` that no convolution can take in, as BatchNormalization.

ONNX Runtime's CPU keeps activations in a blocked layout from one convolution to the next. A `Mul`
and an `Add` behind a concatenation, a pooling or an addition (a pre-activation network's) leave it
and go back to it; a BatchNormalization of mean 0 and variance 1 is the same function and stays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from prunion.runtime.graph.inputs import attribute

if TYPE_CHECKING:
    import onnx

__all__ = ["bank_parts", "normalise_affines"]

# Behind these the pair folds into weights, or belongs to quantised arithmetic.
FOLDS = frozenset("Conv ConvTranspose Gemm MatMul DequantizeLinear".split())


def normalise_affines(model: onnx.ModelProto) -> int:
    """Rewrite, in place, what a pinned graph's bank scales and shifts; returns how often.

    Only float32 pairs of bank parts `[1, C, 1, 1]` over activations `[N, C, H, W]`. The result is
    `(x - 0) / sqrt(1 + 0) · scale + shift`: the same numbers. Slice first: the channel analysis
    reads `Mul` and `Add`.
    """
    from onnx import helper, numpy_helper

    graph = model.graph
    parts = bank_parts(graph)
    makers = {out: node for node in graph.node for out in node.output}
    uses = Counter(name for node in graph.node for name in node.input)
    uses.update(value.name for value in graph.output)
    replaced: dict[str, onnx.NodeProto] = {}
    gone: set[str] = set()
    for add in graph.node:
        pair = _pair(add, makers, uses, parts)
        if pair is None:
            continue
        x, scale, shift = pair
        names = [x]
        values = (scale, shift, np.zeros_like(scale), np.ones_like(scale))
        for what, value in zip(("scale", "shift", "mean", "var"), values, strict=True):
            names.append(f"{add.output[0]}_{what}")
            graph.initializer.append(numpy_helper.from_array(value, names[-1]))
        replaced[add.output[0]] = helper.make_node(
            "BatchNormalization", names, [add.output[0]], name=f"{add.output[0]}_norm", epsilon=0.0
        )
        gone.update(name for name in add.input if name in makers and name not in parts)
    nodes = [
        replaced.get(node.output[0], node) for node in graph.node if node.output[0] not in gone
    ]
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    return len(replaced)


def _pair(
    add: onnx.NodeProto,
    makers: Mapping[str, onnx.NodeProto],
    uses: Counter[str],
    parts: Mapping[str, np.ndarray],
) -> tuple[str, np.ndarray, np.ndarray] | None:
    """(x, scale, shift) if `add` ends `x · scale + shift` with bank parts, else None."""
    if add.op_type != "Add":
        return None
    scaled, shift = _sides(add, parts)
    mul = makers.get(scaled)
    if shift is None or mul is None or mul.op_type != "Mul" or uses[scaled] != 1:
        return None
    x, scale = _sides(mul, parts)
    source = makers.get(x)
    if scale is None or scale.shape != shift.shape or source is None:
        return None
    # Only the reader of a convolution's output folds into it; a second one needs the plain output.
    if source.op_type in FOLDS and uses[x] == 1:
        return None
    return x, scale, shift


def _sides(node: onnx.NodeProto, parts: Mapping[str, np.ndarray]) -> tuple[str, np.ndarray | None]:
    """The activation and the bank part `[C]` of a binary operation; None if it is not that."""
    first, second = node.input
    if (first in parts) == (second in parts):
        return "", None
    x, part = (second, parts[first]) if first in parts else (first, parts[second])
    fits = part.dtype == np.float32 and part.ndim == 4 and part.shape[1] == part.size
    return x, part.reshape(-1) if fits else None


def bank_parts(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """Values of everything computed from the bank's row and constants alone."""
    from onnx import numpy_helper

    constants = {x.name: x for x in graph.initializer}
    values: dict[str, np.ndarray] = {}

    def value(name: str) -> np.ndarray | None:
        if name not in values and name in constants:
            values[name] = numpy_helper.to_array(constants[name])
        return values.get(name)

    parts: dict[str, np.ndarray] = {}
    for node in graph.node:
        compute = OPERATIONS.get(node.op_type)
        from_bank = any(name == "bank" or name in parts for name in node.input)
        if compute is None or not (from_bank or node.op_type == "Reshape"):
            continue
        inputs = [value(name) for name in node.input]
        if any(array is None for array in inputs):
            continue
        outputs = compute(node, *inputs)
        values.update(zip(node.output, outputs, strict=True))
        if from_bank:
            parts.update(zip(node.output, outputs, strict=True))
    return parts


def _gather(node: onnx.NodeProto, table: np.ndarray, index: np.ndarray) -> list[np.ndarray]:
    return [np.take(table, index, attribute(node, "axis", 0))]


def _split(node: onnx.NodeProto, x: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
    return np.split(x, np.cumsum(sizes)[:-1], attribute(node, "axis", 0))


def _unsqueeze(_: onnx.NodeProto, x: np.ndarray, axes: np.ndarray) -> list[np.ndarray]:
    return [np.expand_dims(x, tuple(axes.tolist()))]


def _reshape(_: onnx.NodeProto, x: np.ndarray, shape: np.ndarray) -> list[np.ndarray]:
    known = [x.shape[i] if size == 0 else size for i, size in enumerate(shape.tolist())]
    return [x.reshape(known)]


# The operations between the bank and what it scales, as the exporter writes them.
OPERATIONS: Mapping[str, Callable[..., list[np.ndarray]]] = {
    "Gather": _gather,
    "Split": _split,
    "Unsqueeze": _unsqueeze,
    "Reshape": _reshape,
}
