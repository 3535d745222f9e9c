"""The layers of a pinned graph, and each one alone at any width, as a graph to be timed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from prunion.runtime.bundle import UnitTable
from prunion.runtime.errors import BundleError
from prunion.runtime.graph import attribute

if TYPE_CHECKING:
    import onnx

__all__ = ["GraphLayer", "find_layers", "layer_graph"]

OPSET, IR = 17, 8
LayerKind = Literal["dense", "depthwise", "grouped", "linear"]
LISTS = ("kernel_shape", "strides", "pads", "dilations")


@dataclass(frozen=True)
class GraphLayer:
    """What the time of a convolution or linear layer depends on; equal ones share a table.

    Attributes:
        shape: of the whole weight, `[out, in / groups, *kernel]`.
        cut: for the weight's axes 0 and 1, whether channels are ever removed along it.
        image: `(H, W)` of what it reads; empty for a linear layer.
        attributes: the node's strides, pads, dilations.
    """

    kind: LayerKind
    shape: tuple[int, ...]
    cut: tuple[bool, bool]
    groups: int
    image: tuple[int, ...]
    attributes: tuple[tuple[str, tuple[int, ...]], ...]

    def groups_at(self, out: int) -> int:
        """Groups that are left of a depthwise convolution; other groups stay as they are."""
        return out * self.groups // self.shape[0] if self.kind == "depthwise" else self.groups


def find_layers(model: onnx.ModelProto, table: UnitTable) -> dict[str, GraphLayer]:
    """Every layer that `table` counts, by its weight's name.

    `model` is a pinned graph. Raises BundleError if one of the layers is not in it.
    """
    import onnx

    inferred = onnx.shape_inference.infer_shapes(model)
    infos = [*inferred.graph.value_info, *inferred.graph.input]
    sizes = {x.name: [d.dim_value for d in x.type.tensor_type.shape.dim] for x in infos}
    counted = {layer.weight: layer.shape for layer in table.layers}
    found: dict[str, GraphLayer] = {}
    for node in inferred.graph.node:
        weight = node.input[1] if len(node.input) > 1 else ""
        if weight in counted and node.op_type in ("Conv", "Gemm"):
            cut = tuple(_is_cut(table, weight, axis) for axis in (0, 1))
            image = tuple(sizes.get(node.input[0], ())[2:])
            found[weight] = _layer(node, counted[weight], (cut[0], cut[1]), image)
    for weight in counted:
        if weight not in found or 0 in found[weight].image:
            raise BundleError(f"the layer {weight} cannot be found in the graph: export it again")
    return found


def layer_graph(layer: GraphLayer, out: int, inside: int, batch: int, copies: int) -> bytes:
    """`copies` of the layer beside each other at `out` and `inside` channels, each its own weights.

    All read the one `image` and are averaged to `logits`, so that the difference between two
    numbers of copies is the layers' own time, without the call, the copying of the image and
    its change to the layout that the backend computes in.
    """
    from onnx import TensorProto, helper

    channels = inside * layer.groups_at(out)
    nodes: list[onnx.NodeProto] = []
    tensors: list[onnx.TensorProto] = []
    for copy in range(copies):
        made = _linear if layer.kind == "linear" else _convolution
        made(nodes, tensors, layer, (out, inside), str(copy))
    pooled = [f"pooled{copy}" for copy in range(copies)]
    nodes.append(helper.make_node("Concat", pooled, ["logits"], axis=1))
    value, real = helper.make_tensor_value_info, TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "layer",
        [value("image", real, [batch, channels, *layer.image])],
        [value("logits", real, [batch, out * copies, *([1, 1] if layer.image else [])])],
        tensors,
    )
    opset = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=IR)
    return bytes(model.SerializeToString())


def _is_cut(table: UnitTable, weight: str, axis: int) -> bool:
    units = table.slots.get((weight, axis))
    return units is not None and bool((units >= 0).any())


def _layer(
    node: onnx.NodeProto, shape: tuple[int, ...], cut: tuple[bool, bool], image: tuple[int, ...]
) -> GraphLayer:
    if node.op_type == "Gemm":
        return GraphLayer("linear", shape, cut, 1, (), ())
    groups = attribute(node, "group", 1)
    kind: LayerKind = "dense" if groups == 1 else "depthwise" if shape[1] == 1 else "grouped"
    lists = tuple((a.name, tuple(a.ints)) for a in node.attribute if a.name in LISTS and a.ints)
    return GraphLayer(kind, shape, cut, groups, image, tuple(sorted(lists)))


def _convolution(
    nodes: list[onnx.NodeProto],
    tensors: list[onnx.TensorProto],
    layer: GraphLayer,
    widths: tuple[int, int],
    copy: str,
) -> None:
    from onnx import helper

    _weights(tensors, (*widths, *layer.shape[2:]), copy)
    names = ["image", f"weight{copy}", f"bias{copy}"]
    settings: dict[str, Any] = {name: list(value) for name, value in layer.attributes}
    groups = layer.groups_at(widths[0])
    nodes.append(helper.make_node("Conv", names, [f"conv{copy}"], group=groups, **settings))
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

    _weights(tensors, widths, copy)
    names = ["image", f"weight{copy}", f"bias{copy}"]
    nodes.append(helper.make_node("Gemm", names, [f"pooled{copy}"], transB=1))


def _weights(tensors: list[onnx.TensorProto], shape: tuple[int, ...], copy: str) -> None:
    from onnx import numpy_helper

    random = np.random.default_rng(int(copy))
    weight = random.standard_normal(shape, np.float32) / np.sqrt(np.prod(shape[1:]))
    bias = random.standard_normal(shape[0], np.float32)
    tensors.append(numpy_helper.from_array(weight.astype(np.float32), f"weight{copy}"))
    tensors.append(numpy_helper.from_array(bias, f"bias{copy}"))
