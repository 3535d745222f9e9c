"""What a graph really holds and computes, counted from its own nodes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from prunion.runtime.bundle import UnitTable
from prunion.runtime.errors import BundleError, VerificationError
from prunion.runtime.graph import TABLE_INPUTS, light_copy
from prunion.trainer.channels import einsum_products

__all__ = ["WEIGHTED", "Counted", "check_counts", "initializers", "recount"]

# The places among each node's inputs at which its weight may stand.
COUNTED = {"Conv": (1,), "ConvTranspose": (1,), "Gemm": (1, 0), "MatMul": (1, 0)}
WEIGHTED = frozenset(COUNTED)  # operators with a weight among their inputs


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
    sizes = _sizes(model)
    shapes: dict[str, tuple[int, ...]] = {}
    macs: dict[str, int] = {}
    for node in model.graph.node:
        einsum = node.op_type == "Einsum"
        for place in range(len(node.input)) if einsum else COUNTED.get(node.op_type, ()):
            stored = _stored(node.input[place], makers)
            name = stored.removesuffix("_quantized")
            if stored in values and name not in TABLE_INPUTS:
                shapes[name] = values[stored]
                products = _products(node, place, values[stored], sizes)
                macs[name] = macs.get(name, 0) + products
                if not einsum:
                    break
    return Counted(shapes, macs)


def check_counts(model: onnx.ModelProto, table: UnitTable) -> None:
    """Raise VerificationError, naming a layer, unless `model` costs what `table` says.

    Budgets and manifests are counted from unit tables; this one is the cut network's own.
    """
    counted = recount(model)
    told = {layer.weight: layer for layer in table.layers}
    for name in [*told, *(x for x in counted.shapes if x not in told)]:
        shape, layer = counted.shapes.get(name), told.get(name)
        here = (0, 0) if shape is None else (math.prod(shape), counted.macs[name])
        weights = 0 if layer is None else math.prod(layer.shape)
        there = (weights, 0 if layer is None else layer.positions * weights)
        if here != there:
            raise VerificationError(
                f"the layer {name.removesuffix('.weight')} of the graph has {here[0]:,} weights "
                f"and {here[1]:,} MACs, and was counted as {there[0]:,} and {there[1]:,}; nothing "
                "was written: please report this network as a bug"
            )


def _products(
    node: onnx.NodeProto, place: int, shape: tuple[int, ...], sizes: Mapping[str, list[int]]
) -> int:
    """Multiply-accumulates of a node for one image; its weight is input number `place`."""
    weights = math.prod(shape)
    if node.op_type == "Einsum":
        equation = next(x.s.decode() for x in node.attribute if x.name == "equation")
        every = einsum_products(equation, [_size(name, node, sizes) for name in node.input])
        return every // weights * weights
    if node.op_type == "ConvTranspose":  # each number that it reads is taken so many times
        return math.prod(_size(node.input[0], node, sizes)) * math.prod(shape[1:])
    out = _size(node.output[0], node, sizes)
    if node.op_type == "Conv":  # each number that it makes is a sum of so many products
        return math.prod(out) * math.prod(shape[1:])
    if node.op_type == "MatMul":
        return math.prod(out) * _size(node.input[1 - place], node, sizes)[-1 if place == 1 else -2]
    return weights * out[1 - place]  # one side of a Gemm's answer is the weight's


def _size(name: str, node: onnx.NodeProto, sizes: Mapping[str, list[int]]) -> list[int]:
    found = sizes.get(name, [0])
    if 0 in found:
        raise BundleError(
            f"node {node.name}: its MACs cannot be counted, as the graph does not tell how large "
            f"{name} is for one image"
        )
    return found


def _stored(name: str, makers: Mapping[str, onnx.NodeProto]) -> str:
    """The initializer behind DequantizeLinear, Cast or Transpose nodes."""
    while name in makers and makers[name].op_type in ("DequantizeLinear", "Cast", "Transpose"):
        name = makers[name].input[0]
    return name


def _sizes(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Sizes of every value for one image, 0 where one is not known.

    They are found out for a batch of one: the sizes that a graph computes of its batch's have no
    names in an ordinary inference. What it leaves open the graph may note, as `3*N`.
    """
    light = light_copy(model)
    noted = {info.name: _noted(info) for info in light.graph.value_info}
    del light.graph.value_info[:], light.graph.output[:]
    for info in light.graph.input:
        if info.name in ("image", "domain"):
            info.type.tensor_type.shape.dim[0].dim_value = 1
    graph = onnx.shape_inference.infer_shapes(light, data_prop=True).graph
    found = {info.name: _noted(info) for info in [*graph.input, *graph.value_info]}
    for name, sizes in noted.items():
        known = found.get(name, [])
        if len(known) != len(sizes):
            found[name] = sizes
        else:
            found[name] = [a or b for a, b in zip(known, sizes, strict=True)]
    return found | {i.name: list(i.dims) for i in model.graph.initializer}


def _noted(info: onnx.ValueInfoProto) -> list[int]:
    dims = info.type.tensor_type.shape.dim
    return [dim.dim_value or _multiple(dim.dim_param) for dim in dims]


def _multiple(symbol: str) -> int:
    """3 of `3*N`, for one image; 0 of what is no multiple of the batch."""
    found = re.fullmatch(r"(?:(\d+)\*)?N", symbol.replace(" ", ""))
    return int(found[1] or 1) if found else 0
