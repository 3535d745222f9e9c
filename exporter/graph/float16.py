"""The same graph in float16: the types are in the graph, no builder flag is needed.

The trunk is float16. `bank` stays float32 and only its gathered rows are cast, so the same packs
feed both graphs; the heads stay float32, where a bias of -inf and close logits are safe.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from prunion.runtime.errors import VerificationError
from prunion.runtime.graph import TABLE_INPUTS

__all__ = ["half_graph"]

LARGEST = float(np.finfo(np.float16).max)
HEADS = frozenset(TABLE_INPUTS) - {"bank"}
FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def half_graph(model: onnx.ModelProto, image: str = "float32") -> onnx.ModelProto:
    """A float16 copy of an fp32 graph.

    Args:
        image: type of the `image` input; `float32` is cast inside the graph.

    Raises:
        VerificationError: a weight or bank value is beyond float16's range, naming it.
    """
    half = onnx.ModelProto.FromString(model.SerializeToString())
    graph = half.graph
    floats = _float_values(half)
    full = _full_precision(graph)
    kept = {i.name for i in graph.initializer if i.name in TABLE_INPUTS}
    _convert_initializers(graph, kept)
    made = {"image"} if image == "float32" else set()
    made |= {out for node in graph.node if node.output[0] in full for out in node.output}
    nodes: list[onnx.NodeProto] = []
    casts: dict[tuple[str, int], str] = {}
    # A node computes in one type: cast every float input that was made in the other. The head's
    # tables and the bank are float32 already where a float32 node reads them.
    for node in graph.node:
        wants = FLOAT if node.output[0] in full else HALF
        for place, name in enumerate(node.input):
            has = FLOAT if name in made | kept else HALF
            if name in floats and has != wants and not (node.output[0] in full and name in kept):
                node.input[place] = _cast(nodes, casts, name, wants)
        if node.op_type in ("Constant", "Cast") and node.output[0] not in full:
            _convert_attributes(node)
        nodes.append(node)
    _end_in_float(graph, nodes, made)
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    if image == "float16":
        next(i for i in graph.input if i.name == "image").type.tensor_type.elem_type = HALF
    _check_bank(half)
    half = onnx.shape_inference.infer_shapes(half)
    onnx.checker.check_model(half, full_check=True)
    return half


def _float_values(model: onnx.ModelProto) -> set[str]:
    """Names of every float32 value."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    infos = [*graph.value_info, *graph.input, *graph.output]
    names = {i.name for i in infos if i.type.tensor_type.elem_type == FLOAT}
    return names | {i.name for i in graph.initializer if i.data_type == FLOAT}


def _full_precision(graph: onnx.GraphProto) -> set[str]:
    """First outputs of the nodes that stay float32: the bank's Gather and the whole head."""
    flowing: set[str] = set(HEADS)
    full: set[str] = set()
    for node in graph.node:
        if "bank" in node.input or flowing & set(node.input):
            full.add(node.output[0])
            if "bank" not in node.input:
                flowing.update(node.output)
    return full


def _convert_initializers(graph: onnx.GraphProto, kept: set[str]) -> None:
    for initializer in graph.initializer:
        if initializer.data_type == FLOAT and initializer.name not in kept:
            value = numpy_helper.to_array(initializer)
            if np.abs(value[np.isfinite(value)]).max(initial=0) > LARGEST:
                if value.ndim:
                    raise VerificationError(
                        f"{initializer.name} has weights beyond float16's {LARGEST:.0f}: export "
                        "without --fp16"
                    )
                value = value.clip(-LARGEST, LARGEST)  # an open bound of Clip
            halved = numpy_helper.from_array(value.astype(np.float16), initializer.name)
            initializer.CopyFrom(halved)


def _convert_attributes(node: onnx.NodeProto) -> None:
    for attribute in node.attribute:
        if attribute.name == "to" and attribute.i == FLOAT:
            attribute.i = HALF
        if attribute.name == "value" and attribute.t.data_type == FLOAT:
            value = numpy_helper.to_array(attribute.t).astype(np.float16)
            attribute.t.CopyFrom(numpy_helper.from_array(value))


def _cast(
    nodes: list[onnx.NodeProto], casts: dict[tuple[str, int], str], name: str, to: int
) -> str:
    if (name, to) not in casts:
        casts[name, to] = f"{name}_{'float32' if to == FLOAT else 'float16'}"
        output = casts[name, to]
        nodes.append(helper.make_node("Cast", [name], [output], name=f"cast_{output}", to=to))
    return casts[name, to]


def _end_in_float(graph: onnx.GraphProto, nodes: list[onnx.NodeProto], made: set[str]) -> None:
    """Every graph here ends in its head; a graph that did not would end in a cast."""
    for output in graph.output:
        if output.name not in made:
            last = next(n for n in nodes if output.name in n.output)
            place = list(last.output).index(output.name)
            last.output[place] = f"{output.name}_float16"
            nodes.append(helper.make_node("Cast", [last.output[place]], [output.name], to=FLOAT))


def _check_bank(model: onnx.ModelProto) -> None:
    for initializer in model.graph.initializer:
        if initializer.name == "bank":
            largest = float(np.abs(numpy_helper.to_array(initializer)).max(initial=0))
            if largest > LARGEST:
                raise VerificationError(
                    f"the bank holds a scale or shift of {largest:.3g}, beyond float16's "
                    f"{LARGEST:.0f}: export without --fp16"
                )
