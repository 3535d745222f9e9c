"""onnx's full check of a graph without a second and third copy of its weights."""

from __future__ import annotations

import onnx
from onnx import helper

__all__ = ["check_structure"]

SMALL = 1024  # bytes; shapes, axes and sizes are read by shape inference, weights are not


def check_structure(model: onnx.ModelProto) -> None:
    """Operators, types and shapes of a model in memory, weights taken for inputs.

    The checker serialises what it is given and parses it again: with ResNet-50's weights that was
    a third of an export's memory. `prunion verify` checks the file with its weights.

    Raises whatever onnx raises.
    """
    light = onnx.ModelProto(ir_version=model.ir_version)
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    source, graph = model.graph, light.graph
    graph.name = source.name
    graph.node.extend(source.node)
    graph.input.extend(source.input)
    graph.output.extend(source.output)
    graph.value_info.extend(source.value_info)
    given = {value.name for value in source.input}
    for tensor in source.initializer:
        if tensor.ByteSize() <= SMALL:
            graph.initializer.append(tensor)
        elif tensor.name not in given:
            kind = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            graph.input.append(kind)
    onnx.checker.check_model(light, full_check=True)
