"""The same graph for raw pixels: uint8 in, normalised inside by each image's own domain."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["pixel_graph"]


def pixel_graph(
    model: onnx.ModelProto, domains: int, mean: Sequence[float], std: Sequence[float]
) -> onnx.ModelProto:
    """A copy whose `image` is `[N, H, W, 3]` uint8 RGB, as decoders and cameras give it.

    `pixels` `[D, 6]`, an optional input with a default, holds each domain's three scales
    `1 / (255 · std)` and three shifts `-mean / std`. A graph without a `domain` input has them as
    constants.
    """
    made = onnx.ModelProto.FromString(model.SerializeToString())
    graph = made.graph
    old = next(i for i in graph.input if i.name == "image")
    kind = old.type.tensor_type.elem_type
    batch, _, height, width = old.type.tensor_type.shape.dim
    size = [batch.dim_param, height.dim_value, width.dim_value, 3]
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name == "image":
                node.input[place] = "pixels_normalised"
    means, stds = np.array(mean, np.float64), np.array(std, np.float64)
    row = np.concatenate([1 / (255 * stds), -means / stds]).astype(np.float32)
    selectable = any(i.name == "domain" for i in graph.input)
    # Cast first: TensorRT reads uint8 inputs through a Cast only.
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels_float"], "pixels_float", to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["pixels_float"], ["pixels_planes"], perm=[0, 3, 1, 2]),
        *_affine(graph, row, domains, selectable),
        helper.make_node(
            "Mul", ["pixels_planes", "pixels_scale"], ["pixels_scaled"], "pixels_scaled"
        ),
    ]
    shifted = "pixels_normalised" if kind == TensorProto.FLOAT else "pixels_shifted"
    nodes.append(helper.make_node("Add", ["pixels_scaled", "pixels_shift"], [shifted], shifted))
    if kind != TensorProto.FLOAT:
        nodes.append(helper.make_node("Cast", [shifted], ["pixels_normalised"], to=kind))
    rest = list(graph.node)
    del graph.node[:], graph.value_info[:]
    graph.node.extend([*nodes, *rest])
    old.CopyFrom(helper.make_tensor_value_info("image", TensorProto.UINT8, size))
    made = onnx.shape_inference.infer_shapes(made)
    onnx.checker.check_model(made, full_check=True)
    return made


def _affine(
    graph: onnx.GraphProto, row: np.ndarray, domains: int, selectable: bool
) -> list[onnx.NodeProto]:
    """Nodes that make `pixels_scale` and `pixels_shift`, `[N, 3, 1, 1]`; or constants."""
    if not selectable:
        for name, part in (("pixels_scale", row[:3]), ("pixels_shift", row[3:])):
            graph.initializer.append(numpy_helper.from_array(part.reshape(1, 3, 1, 1), name))
        return []
    pixels = numpy_helper.from_array(np.tile(row, (domains, 1)), "pixels")
    info = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["D", 6])
    graph.initializer.extend(
        [
            pixels,
            numpy_helper.from_array(np.array([2, 3], np.int64), "pixels_axes"),
            numpy_helper.from_array(np.array([3, 3], np.int64), "pixels_parts"),
        ]
    )
    graph.input.append(info)
    return [
        helper.make_node("Gather", ["pixels", "domain"], ["pixels_row"], "pixels_row", axis=0),
        helper.make_node(
            "Unsqueeze", ["pixels_row", "pixels_axes"], ["pixels_rows"], "pixels_rows"
        ),
        helper.make_node(
            "Split", ["pixels_rows", "pixels_parts"], ["pixels_scale", "pixels_shift"], axis=1
        ),
    ]
