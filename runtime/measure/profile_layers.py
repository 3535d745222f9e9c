"""The layers of a pinned graph, and each one alone at any width, as a graph to be timed."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from prunion.runtime.bundle import UnitTable
from prunion.runtime.errors import BundleError
from prunion.runtime.graph import attribute, list_attribute

if TYPE_CHECKING:
    import onnx

__all__ = ["GraphLayer", "find_layers", "layer_graph"]

OPSET, IR = 17, 8
LayerKind = Literal["dense", "depthwise", "grouped", "transposed", "linear", "tokens"]
KINDS = ("Conv", "ConvTranspose", "Gemm")
LISTS = ("kernel_shape", "strides", "pads", "dilations", "output_padding", "output_shape")


@dataclass(frozen=True)
class GraphLayer:
    """What the time of a convolution or linear layer depends on; equal ones share a table.

    Attributes:
        kind: tokens is a linear layer over the last axis.
        shape: of the whole weight, `[out, in / groups, *kernel]`; of a transposed convolution
            `[in, out / groups, *kernel]`.
        strides: for the weight's axes 0 and 1, how many channels go together (`UnitTable.stride`).
        image: `(H, W)` of what it reads; `(T,)` for tokens, however they lie; else empty.
        attributes: the node's strides, pads, dilations.
        parts: how many such images it reads for one, where a batch is cut into windows.
    """

    kind: LayerKind
    shape: tuple[int, ...]
    strides: tuple[int, int]
    groups: int
    image: tuple[int, ...]
    attributes: tuple[tuple[str, tuple[int, ...]], ...]
    parts: int = 1

    def groups_at(self, out: int) -> int:
        """Groups that are left of a depthwise convolution; other groups stay as they are."""
        depthwise = self.groups > 1 and self.shape[1] == 1
        return out * self.groups // self.shape[0] if depthwise else self.groups

    def image_at(self, first: int, second: int) -> tuple[int, ...]:
        """The shape of one image that it reads, at widths of its weight's axes 0 and 1."""
        inside = first if self.kind == "transposed" else second * self.groups_at(first)
        return (*self.image, inside) if self.kind == "tokens" else (inside, *self.image)


def find_layers(model: onnx.ModelProto, table: UnitTable) -> dict[str, GraphLayer]:
    """Every layer that `table` counts, by its weight's name.

    `model` is a pinned graph. Raises BundleError if one of the layers is not in it.
    """
    import onnx

    inferred = onnx.shape_inference.infer_shapes(model)
    infos = [*inferred.graph.value_info, *inferred.graph.input]
    sizes = {x.name: [d.dim_value for d in x.type.tensor_type.shape.dim] for x in infos}
    counted = {layer.weight: layer for layer in table.layers}
    turned = {
        node.output[0]: node.input[0]
        for node in inferred.graph.node
        if node.op_type == "Transpose" and list_attribute(node, "perm") in (None, [1, 0])
    }
    found: dict[str, GraphLayer] = {}
    for node in inferred.graph.node:
        second = node.input[1] if len(node.input) > 1 else ""
        weight = turned.get(second, second) if node.op_type == "MatMul" else second
        if weight in counted and (node.op_type in KINDS or weight != second):
            strides = (table.stride(weight, 0), table.stride(weight, 1))
            layer, image = counted[weight], tuple(sizes.get(node.input[0], ())[2:])
            linear = node.op_type == "MatMul" or (node.op_type == "Gemm" and layer.positions > 1)
            if linear:  # a graph may leave open how its tokens lie, also as rows of a batch
                image = (layer.positions,)
            made = _layer(node, layer.shape, strides, image, tokens=linear)
            taken = image if made.kind == "transposed" else sizes.get(node.output[0], ())[2:]
            parts = 1 if linear else layer.positions // (math.prod(taken) or layer.positions) or 1
            found[weight] = replace(made, parts=parts)
    for weight in counted:
        if weight not in found or 0 in found[weight].image:
            raise BundleError(
                f"the layer {weight} cannot be timed alone: the graph has no convolution and no "
                "linear layer of it whose size is known; choose another kind of budget, such as "
                "macs"
            )
    return found


def layer_graph(layer: GraphLayer, first: int, second: int, batch: int, copies: int) -> bytes:
    """`copies` of the layer beside each other at widths of its weight's axes, each its own weights.

    All read the one `image` and are averaged to `logits`, so that the difference between two
    numbers of copies is the layers' own time, without the call, the copying of the image and
    its change to the layout that the backend computes in.
    """
    from onnx import TensorProto, helper

    nodes: list[onnx.NodeProto] = []
    tensors: list[onnx.TensorProto] = []
    for copy in range(copies):
        made = _linear if layer.kind in ("linear", "tokens") else _convolution
        made(nodes, tensors, layer, (first, second), str(copy))
    pooled = [f"pooled{copy}" for copy in range(copies)]
    nodes.append(helper.make_node("Concat", pooled, ["logits"], axis=1))
    value, real = helper.make_tensor_value_info, TensorProto.FLOAT
    rows = batch * layer.parts
    out = second * layer.groups_at(first) if layer.kind == "transposed" else first
    graph = helper.make_graph(
        nodes,
        "layer",
        [value("image", real, [rows, *layer.image_at(first, second)])],
        [value("logits", real, [rows, out * copies, *([1, 1] if layer.shape[2:] else [])])],
        tensors,
    )
    opset = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=IR)
    return bytes(model.SerializeToString())


def _layer(
    node: onnx.NodeProto,
    shape: tuple[int, ...],
    strides: tuple[int, int],
    image: tuple[int, ...],
    *,
    tokens: bool,
) -> GraphLayer:
    if tokens:
        return GraphLayer("tokens", shape, strides, 1, image, ())
    if node.op_type == "Gemm":
        return GraphLayer("linear", shape, strides, 1, (), ())
    groups = attribute(node, "group", 1)
    kind: LayerKind = "dense" if groups == 1 else "depthwise" if shape[1] == 1 else "grouped"
    if node.op_type == "ConvTranspose":
        kind = "transposed"
    lists = tuple((a.name, tuple(a.ints)) for a in node.attribute if a.name in LISTS and a.ints)
    return GraphLayer(kind, shape, strides, groups, image, tuple(sorted(lists)))


def _convolution(
    nodes: list[onnx.NodeProto],
    tensors: list[onnx.TensorProto],
    layer: GraphLayer,
    widths: tuple[int, int],
    copy: str,
) -> None:
    from onnx import helper

    groups, turned = layer.groups_at(widths[0]), layer.kind == "transposed"
    bias = widths[1] * groups if turned else widths[0]
    _weights(tensors, (*widths, *layer.shape[2:]), bias, copy)
    names = ["image", f"weight{copy}", f"bias{copy}"]
    settings: dict[str, Any] = {name: list(value) for name, value in layer.attributes}
    kind = "ConvTranspose" if turned else "Conv"
    nodes.append(helper.make_node(kind, names, [f"conv{copy}"], group=groups, **settings))
    nodes.append(helper.make_node("Relu", [f"conv{copy}"], [f"active{copy}"]))
    nodes.append(helper.make_node("GlobalAveragePool", [f"active{copy}"], [f"pooled{copy}"]))


def _linear(
    nodes: list[onnx.NodeProto],
    tensors: list[onnx.TensorProto],
    layer: GraphLayer,
    widths: tuple[int, int],
    copy: str,
) -> None:
    from onnx import helper

    if layer.kind == "linear":
        _weights(tensors, widths, widths[0], copy)
        names = ["image", f"weight{copy}", f"bias{copy}"]
        nodes.append(helper.make_node("Gemm", names, [f"pooled{copy}"], transB=1))
        return
    _weights(tensors, widths[::-1], widths[0], copy)
    nodes.append(helper.make_node("MatMul", ["image", f"weight{copy}"], [f"product{copy}"]))
    nodes.append(helper.make_node("Add", [f"product{copy}", f"bias{copy}"], [f"sum{copy}"]))
    nodes.append(helper.make_node("Relu", [f"sum{copy}"], [f"active{copy}"]))
    mean = helper.make_node(
        "ReduceMean", [f"active{copy}"], [f"pooled{copy}"], axes=[1], keepdims=0
    )
    nodes.append(mean)


def _weights(
    tensors: list[onnx.TensorProto], shape: tuple[int, ...], biases: int, copy: str
) -> None:
    from onnx import numpy_helper

    random = np.random.default_rng(int(copy))
    weight = random.standard_normal(shape, np.float32) / np.sqrt(np.prod(shape[1:]))
    bias = random.standard_normal(biases, np.float32)
    tensors.append(numpy_helper.from_array(weight.astype(np.float32), f"weight{copy}"))
    tensors.append(numpy_helper.from_array(bias, f"bias{copy}"))
