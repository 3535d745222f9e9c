"""The same graph in float16: the types are in the graph, no builder flag is needed.

The trunk is float16. `bank` stays float32 and only its gathered rows are cast, so the same packs
feed both graphs; the heads stay float32, where a bias of -inf and close logits are safe. So does
every node that gives or reads values which may leave float16's range, at its small end where they
are divided by.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from prunion.exporter.counts import WEIGHTED
from prunion.exporter.graph.variants.activations import float_values
from prunion.exporter.graph.variants.guards import guard_constants, guarding_nodes
from prunion.runtime.errors import VerificationError
from prunion.runtime.graph import ADAPTERS, TABLE_INPUTS

__all__ = ["float16_of", "float32_layers", "half_graph"]

LARGEST = float(np.finfo(np.float16).max)
# Between the images that were looked at and all others: two of float16's five bits of exponent.
MARGIN = 4
SQUARING = frozenset(
    ("InstanceNormalization", "GroupNormalization", "LayerNormalization", "ReduceL2")
)
MOVING = frozenset(("Split", "Unsqueeze", "Squeeze", "Reshape", "Transpose", "Slice", "Identity"))
ROWS = frozenset(("bank", ADAPTERS))  # of which a gathered row goes into the trunk
HEADS = frozenset(TABLE_INPUTS) - ROWS
TYPED = frozenset(("Constant", "ConstantOfShape", "Cast"))  # by an attribute, whatever they read
FLOAT_PLACES = {"Resize": (1, 2)}  # inputs that ONNX gives one type, whatever the others have
FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def half_graph(
    model: onnx.ModelProto, image: str = "float32", largest: Mapping[str, float] | None = None
) -> onnx.ModelProto:
    """A float16 copy of an fp32 graph.

    Args:
        image: type of the `image` input; `float32` is cast inside the graph.
        largest: the largest magnitude of each value, as `largest_values` finds it. Nodes that come
            within a factor of MARGIN of float16's end stay float32.

    Raises:
        VerificationError: a bank value is beyond float16's range, or so is every layer.
    """
    half = onnx.ModelProto.FromString(model.SerializeToString())
    graph = half.graph
    beyond = _beyond(graph, largest or {})
    _refuse_all(graph, beyond)
    _own_rows(graph, beyond)
    floats = float_values(half)
    guards = guard_constants(graph)
    # What stays float32: nodes, by their first outputs, initializers, and what those nodes give.
    full_nodes = _full_precision(graph) | set(beyond) | guarding_nodes(graph, guards) | guards
    initializers = {i.name for i in graph.initializer}
    full_initializers = (initializers & {*TABLE_INPUTS, *guards}) | _read_by(graph, full_nodes)
    typed_by_onnx = {node.input[i] for node in graph.node for i in _float_places(node)}
    full_initializers |= typed_by_onnx & initializers
    full_nodes |= typed_by_onnx - full_initializers  # of constants that are nodes
    _convert_initializers(graph, full_initializers)
    full_results = {"image"} if image == "float32" else set()
    full_results |= {
        out for node in graph.node if node.output[0] in full_nodes for out in node.output
    }
    full_values = full_initializers | full_results
    nodes: list[onnx.NodeProto] = []
    casts: dict[tuple[str, int], str] = {}
    # A node computes in one type: cast every float input that was made in the other. The head's
    # tables and the bank are float32 already where a float32 node reads them.
    for node in graph.node:
        is_full = node.output[0] in full_nodes
        for place, name in enumerate(node.input):
            wants = FLOAT if is_full or place in _float_places(node) else HALF
            has = FLOAT if name in full_values else HALF
            if name in floats and has != wants:
                node.input[place] = _cast(nodes, casts, name, wants)
        if node.op_type in TYPED and not is_full:
            _convert_attributes(node)
        nodes.append(node)
    _end_in_float(graph, nodes, full_results)
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    if image == "float16":
        next(i for i in graph.input if i.name == "image").type.tensor_type.elem_type = HALF
    _check_bank(half)
    half = onnx.shape_inference.infer_shapes(half)
    onnx.checker.check_model(half, full_check=True)
    return half


def _full_precision(graph: onnx.GraphProto) -> set[str]:
    """First outputs of the nodes that stay float32: the Gathers of rows and the whole head."""
    flowing: set[str] = set(HEADS)
    full: set[str] = set()
    for node in graph.node:
        if (ROWS | flowing) & set(node.input):
            full.add(node.output[0])
            if not ROWS & set(node.input):
                flowing.update(node.output)
    return full


def float32_layers(model: onnx.ModelProto, largest: Mapping[str, float]) -> dict[str, float]:
    """The layers that `half_graph` leaves in float32, each with the largest value that it meets.

    A layer is named by its weight; a node without one is named itself if no layer is kept.
    """
    beyond = _beyond(model.graph, largest)
    weights = {i.name for i in model.graph.initializer} - set(TABLE_INPUTS)
    layers, others = dict[str, float](), dict[str, float]()
    for node in model.graph.node:
        if node.output[0] not in beyond:
            continue
        own = [name for name in node.input[1:] if name in weights]
        if node.op_type in WEIGHTED and own:
            layers[own[0].removesuffix(".weight")] = beyond[node.output[0]]
        else:
            others[node.name or node.output[0]] = beyond[node.output[0]]
    return layers or others


def _beyond(graph: onnx.GraphProto, largest: Mapping[str, float]) -> dict[str, float]:
    """First outputs of the trunk's nodes that float16 is too small for, and what they meet."""
    heads, limit = _full_precision(graph), LARGEST / MARGIN
    weights = {
        i.name: float(np.abs(numpy_helper.to_array(i)).max(initial=0))
        for i in graph.initializer
        if i.data_type == FLOAT and i.name not in TABLE_INPUTS and len(i.dims)
    }
    found = {}
    for node in graph.node:
        if node.output[0] in heads or node.op_type == "Constant":
            continue
        read = max((largest.get(name, 0.0) for name in node.input), default=0.0)
        met = max(read, *(largest.get(name, 0.0) for name in node.output))
        if node.op_type in SQUARING:
            met = max(met, read**2)
        # A weight is known to the last digit: it needs no margin.
        weight = max((weights.get(name, 0.0) for name in node.input), default=0.0)
        if not met <= limit or weight > LARGEST:
            found[node.output[0]] = max(met, weight)
    return found


def _refuse_all(graph: onnx.GraphProto, beyond: Mapping[str, float]) -> None:
    """Raise VerificationError if no layer of the trunk is left for float16."""
    heads = _full_precision(graph)
    layers = [n for n in graph.node if n.op_type in WEIGHTED and n.output[0] not in heads]
    if layers and all(node.output[0] in beyond for node in layers):
        least = min(beyond[node.output[0]] for node in layers)
        raise VerificationError(
            f"every layer meets values of {least:.3g} or more, and float16 ends at {LARGEST:.0f} "
            f"(a margin of {MARGIN} is kept): export without --fp16"
        )


def _own_rows(graph: onnx.GraphProto, beyond: dict[str, float]) -> None:
    """Give the nodes of `beyond` the bank's rows as they are, by copies of what splits them.

    A scale that brings large values back is small: through float16 it would lose its digits. The
    copies join `beyond`.
    """
    makers = {out: node for node in graph.node for out in node.output}
    copied: dict[str, list[onnx.NodeProto]] = {}

    def from_bank(name: str) -> bool:
        node = makers.get(name)
        if node is None or "bank" in node.input:
            return node is not None
        return node.op_type in MOVING and from_bank(node.input[0])

    def copy(name: str) -> str:
        node = makers[name]
        if "bank" in node.input:  # the row itself is float32 anyway
            return name
        if node.output[0] not in copied:
            twin = onnx.NodeProto.FromString(node.SerializeToString())
            twin.name = f"{node.name}_full"
            twin.input[0] = copy(node.input[0])
            del twin.output[:]
            twin.output.extend(f"{out}_full" for out in node.output)
            copied[node.output[0]] = [node, twin]
        return f"{name}_full"

    for node in graph.node:
        if node.output[0] in beyond:
            for place, name in enumerate(node.input):
                if node.op_type not in MOVING and from_bank(name):
                    node.input[place] = copy(name)
    nodes = [made for node in graph.node for made in copied.get(node.output[0], [node])]
    beyond |= {twin.output[0]: 0.0 for _, twin in copied.values()}
    del graph.node[:]
    graph.node.extend(nodes)


def _read_by(graph: onnx.GraphProto, full: set[str]) -> set[str]:
    """Initializers that only nodes of `full` read."""
    read, others = set[str](), set[str]()
    for node in graph.node:
        (read if node.output[0] in full else others).update(node.input)
    return {i.name for i in graph.initializer if i.name in read - others}


def _float_places(node: onnx.NodeProto) -> list[int]:
    """Those of its inputs that are float32 in every graph."""
    return [i for i in FLOAT_PLACES.get(node.op_type, ()) if i < len(node.input)]


def float16_of(value: np.ndarray, name: str) -> np.ndarray:
    """A float32 constant in float16; a single number beyond its range is its end.

    Raises VerificationError where one of several is beyond it.
    """
    if np.abs(value[np.isfinite(value)]).max(initial=0) > LARGEST:
        if value.ndim:
            raise VerificationError(
                f"{name} has weights beyond float16's {LARGEST:.0f}: export without --fp16"
            )
        value = value.clip(-LARGEST, LARGEST)  # an open bound of Clip
    return value.astype(np.float16)


def _convert_initializers(graph: onnx.GraphProto, kept: set[str]) -> None:
    for initializer in graph.initializer:
        if initializer.data_type == FLOAT and initializer.name not in kept:
            halved = float16_of(numpy_helper.to_array(initializer), initializer.name)
            initializer.CopyFrom(numpy_helper.from_array(halved, initializer.name))


def _convert_attributes(node: onnx.NodeProto) -> None:
    if node.op_type == "ConstantOfShape" and not node.attribute:  # zeros, of float32
        zero = numpy_helper.from_array(np.zeros(1, np.float32))
        node.attribute.append(helper.make_attribute("value", zero))
    for attribute in node.attribute:
        if attribute.name == "to" and attribute.i == FLOAT:
            attribute.i = HALF
        if attribute.name == "value" and attribute.t.data_type == FLOAT:
            value = float16_of(numpy_helper.to_array(attribute.t), node.output[0])
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
        if initializer.name in ROWS:
            what = "scale or shift" if initializer.name == "bank" else "weight"
            largest = float(np.abs(numpy_helper.to_array(initializer)).max(initial=0))
            if largest > LARGEST:
                raise VerificationError(
                    f"the {initializer.name} holds a {what} of {largest:.3g}, beyond float16's "
                    f"{LARGEST:.0f}: export without --fp16"
                )
