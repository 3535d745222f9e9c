"""What an ONNX graph really holds, counted from its initializers and nodes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from prunion.runtime.graph.inputs import TABLE_INPUTS

__all__ = ["Counted", "initializers", "recount"]


@dataclass(frozen=True)
class Counted:
    """Weights and multiply-accumulates of every convolution and linear layer, heads apart.

    Attributes:
        shapes: shape of each trunk weight by the trunk's own name, as stored in the graph.
        macs: multiply-accumulates of each for one image.
    """

    shapes: Mapping[str, tuple[int, ...]]
    macs: Mapping[str, int]

    @property
    def params(self) -> int:
        """Weights in all."""
        return sum(math.prod(shape) for shape in self.shapes.values())


def initializers(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Every initializer by name."""
    return {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}


def recount(model: onnx.ModelProto) -> Counted:
    """Count a graph again; knows float graphs and quantised (QDQ) ones."""
    values = {i.name: tuple(i.dims) for i in model.graph.initializer}
    makers = {out: node for node in model.graph.node for out in node.output}
    sizes = _sizes(onnx.shape_inference.infer_shapes(model))
    shapes: dict[str, tuple[int, ...]] = {}
    macs: dict[str, int] = {}
    for node in model.graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        stored = _stored(node.input[1], makers)
        name = stored.removesuffix("_quantized")
        if stored not in values or name in TABLE_INPUTS:
            continue
        shape = values[stored]
        shapes[name] = shape
        out = sizes[node.output[0]]
        positions = math.prod(out[2:]) if node.op_type == "Conv" else math.prod(out[1:-1])
        macs[name] = macs.get(name, 0) + positions * math.prod(shape)
    return Counted(shapes, macs)


def _stored(name: str, makers: Mapping[str, Any]) -> str:
    """The initializer behind DequantizeLinear, Cast or Transpose nodes."""
    while name in makers and makers[name].op_type in ("DequantizeLinear", "Cast", "Transpose"):
        name = makers[name].input[0]
    return name


def _sizes(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Known sizes of every value; a symbolic one counts as 1 (only N is)."""
    infos = [*model.graph.value_info, *model.graph.output]
    return {
        info.name: [d.dim_value or 1 for d in info.type.tensor_type.shape.dim] for info in infos
    }
