"""What a variant must hold, worked out from the graph that it was made of.

Noise within a tolerance cannot tell a wrong weight from a rounded one: INT8's answers may be half
of a logit away. The numbers can: a float16 weight is the float32 one rounded, an INT8 weight lies
within half a step of it, and a graph for pixels is its sibling with three nodes in front.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from prunion.exporter.counts import WEIGHTED, initializers
from prunion.exporter.graph import divided_tensors, float16_of, pixel_graph
from prunion.runtime.base import PRECISIONS
from prunion.runtime.bundle import Bundle
from prunion.runtime.graph import attribute

__all__ = ["check_variant", "differences", "first_few", "tensors_of"]

QUANTISING = frozenset(("QuantizeLinear", "DequantizeLinear"))
# ONNX Runtime divides by 127, and by 127.5 in other versions; the rest is float32's rounding.
STEPS, ROUNDED = (126.99, 128.01), 1e-4
TOLD = 3  # of a file that is another's, every tensor differs
Nodes = dict[tuple[str, ...], tuple[object, ...]]


def check_variant(bundle: Bundle, variant: str, sound: Collection[str]) -> Iterator[str]:
    """Every tensor, node and input type of a variant against the graph that it was made of.

    The steps of INT8's activations are known from calibration images alone, which a bundle does not
    hold: here they are positive numbers.

    Args:
        sound: the graphs that are worth a comparison.
    """
    source = variant.removesuffix("-uint8") if variant.endswith("-uint8") else "fp32"
    if source not in bundle.manifest.graphs:
        if source != "fp32":  # that one is missed once, not for every variant
            yield f"there is no {source} graph, of which it was made: export the bundle again"
    elif variant != "fp32" and source in sound:
        base, model = (
            onnx.load_from_string(bundle.held_graph(PRECISIONS[x]).read())
            for x in (source, variant)
        )
        yield from first_few(differences(bundle, variant, base, model))


def first_few(found: Iterable[str]) -> Iterator[str]:
    """The first of what was found, and how many more there are: one fault may show in hundreds."""
    every = list(found)
    yield from every[:TOLD]
    if more := every[TOLD:]:
        yield f"and {len(more):,} more such, the last: {more[-1]}"


def differences(
    bundle: Bundle, variant: str, base: onnx.ModelProto, model: onnx.ModelProto
) -> Iterator[str]:
    """What in `model` is not as it would be, had it been made of `base`."""
    source = variant.removesuffix("-uint8")
    if source != variant:
        spec = bundle.manifest.input
        made = pixel_graph(base, len(bundle.domains), spec.mean, spec.std)
        yield from _same_tensors(tensors_of(made), tensors_of(model), source)
        yield from _same_nodes(_nodes(made), _nodes(model), source)
        yield from _same_types(made, model, source)
    elif variant == "fp16":
        verified = bundle.manifest.verified
        check = None if verified is None else verified.variants.get(variant)
        yield from _check_float16(base, model, {} if check is None else check.float32_layers)
    else:
        yield from _check_int8(base, model)


def _check_float16(
    base: onnx.ModelProto, model: onnx.ModelProto, float32_layers: Collection[str]
) -> Iterator[str]:
    values, held = tensors_of(base), tensors_of(model)
    wanted = {
        name: float16_of(value, name) if _is(value, "f4") and _is(held.get(name), "f2") else value
        for name, value in values.items()
    }
    yield from _same_tensors(wanted, held, "fp32")
    weights = [name for name in _weights(base, values) if name in held]
    for name in weights:
        if name.removesuffix(".weight") not in float32_layers and not _is(held[name], "f2"):
            yield f"{name} is {held[name].dtype}, and the manifest says of no such layer"
    if weights and not any(_is(held[name], "f2") for name in weights):
        yield "none of its weights is float16"
    yield from _same_nodes(_nodes(base, {"Cast"}), _half_nodes(base, model), "fp32")
    yield from _same_types(base, model, "fp32", image=TensorProto.FLOAT16)


def _check_int8(base: onnx.ModelProto, model: onnx.ModelProto) -> Iterator[str]:
    model = _without_copies(base, model)
    values, held = tensors_of(base), tensors_of(model)
    ranges, divided = held.get("bank_ranges"), divided_tensors(base.graph)
    if ranges is not None:
        yield from _check_ranges(ranges, values.get("bank"), divided.values())
        for name, part in divided.items():
            shape = (-1, *[1] * (values[name].ndim - 1))
            values[name] = (values[name] / ranges[part].reshape(shape)).astype(np.float32)
    convolutions = {x.input[1] for x in base.graph.node if x.op_type == "Conv"} & values.keys()
    for name in sorted(convolutions):
        eight, scale = held.get(f"{name}_quantized"), held.get(f"{name}_scale")
        if eight is None or scale is None or not _is(eight, "i1"):
            yield f"it holds no eight bits of {name}"
        elif eight.shape != values[name].shape or scale.shape != eight.shape[:1]:
            yield f"its eight bits of {name} are {eight.shape} in {scale.shape} steps"
        elif not _is_rounded(values[name], eight, scale):
            yield f"its eight bits of {name} are not those of the fp32 graph"
    steps = {name.removesuffix("_scale") for name in held if name.endswith("_scale")}
    made = [f"{n}{end}" for n in steps for end in ("_scale", "_zero_point")]
    made += ["bank_ranges", *(f"{name}_quantized" for name in convolutions)]
    for name in sorted(x for x in made if x in held and x not in values):
        value = held[name]
        if name.endswith("_zero_point") and (value.any() or not _is(value, "i1")):
            yield f"{name} is not the zero that prunion's INT8 has throughout"
        elif name.endswith("_scale") and not ((value > 0) & np.isfinite(value)).all():
            yield f"{name} is no step of eight bits"
    kept = {name: value for name, value in values.items() if name not in convolutions}
    rest = {name: value for name, value in held.items() if name in values or name not in made}
    yield from _same_tensors(kept, {n: v for n, v in rest.items() if n not in convolutions}, "fp32")
    yield from _same_nodes(_nodes(base), _nodes(model, QUANTISING, "bank_ranges"), "fp32")
    yield from _check_quantising(model, held)
    yield from _same_types(base, model, "fp32")


def _without_copies(base: onnx.ModelProto, model: onnx.ModelProto) -> onnx.ModelProto:
    """INT8's graph, whose nodes read a constant of the fp32 graph by the name that it has there.

    ONNX Runtime gives each convolution a bias of its own where several read one.
    """
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    values, held = tensors_of(base), tensors_of(plain)
    read = {tuple(node.output): node.input for node in base.graph.node}
    copies = dict[str, str]()
    for node in plain.graph.node:
        given = list(read.get(tuple(node.output), ()))
        pairs = zip(node.input, given, strict=True) if len(given) == len(node.input) else ()
        for place, (name, own) in enumerate(pairs):
            if name in held and name not in values and own in values:
                value, copy = values[own], held[name]
                if copy.dtype == value.dtype and np.array_equal(copy, value, equal_nan=True):
                    copies[name] = node.input[place] = own
    for item in [x for x in plain.graph.initializer if x.name in copies]:
        if copies[item.name] in held:
            plain.graph.initializer.remove(item)
        else:
            item.name = copies[item.name]
            held[item.name] = values[item.name]
    return plain


def _check_ranges(
    ranges: np.ndarray, bank: np.ndarray | None, parts: Collection[slice]
) -> Iterator[str]:
    """What `equalise` multiplies the bank's rows by: 1 where no convolution was divided."""
    if not parts or bank is None or ranges.shape != bank.shape[1:]:
        yield f"its bank_ranges are {ranges.shape}, which the fp32 graph has no place for"
        return
    rest = ranges.copy()
    for part in parts:
        rest[part] = 1
    if not ((ranges > 0) & np.isfinite(ranges)).all() or (rest != 1).any():
        yield "its bank_ranges are not those of its convolutions"


def _is_rounded(value: np.ndarray, eight: np.ndarray, scale: np.ndarray) -> bool:
    """Whether eight bits are a weight's, each channel in steps of its own largest value's."""
    flat, bits = value.reshape(len(value), -1).astype(np.float64), eight.reshape(len(value), -1)
    largest, step = np.abs(flat).max(1, initial=0), scale.astype(np.float64)
    away = np.abs(bits * step[:, None] - flat).max(1, initial=0)
    fits = (largest >= STEPS[0] * step) & (largest <= STEPS[1] * step)
    nothing = (largest < np.finfo(np.float32).tiny * 128) & ~bits.any(1)  # a step of any size
    return bool(((away <= step * (0.5 + ROUNDED)) & fits | nothing).all())


def _check_quantising(model: onnx.ModelProto, held: Mapping[str, np.ndarray]) -> Iterator[str]:
    """Each pair of nodes has the steps of the value that it rounds."""
    names: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type not in QUANTISING:
            continue
        name = names[node.output[0]] = names.get(node.input[0], _whole(node.input[0]))
        own = [f"{name}_scale", f"{name}_zero_point"]
        scale = held.get(own[0])
        if list(node.input[1:]) != own or scale is None:
            yield f"node {node.name} does not round {name} in its own steps"
        elif scale.ndim and attribute(node, "axis", 1) != 0:
            yield f"node {node.name} has its steps along axis {attribute(node, 'axis', 1)}"


def tensors_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Every constant that is read, by name, whether an initializer or a node.

    What nothing reads, as an older opset leaves the axes of a reduction, the quantiser drops.
    """
    found = initializers(model)
    for node in model.graph.node:
        for item in node.attribute if node.op_type == "Constant" else ():
            if item.name == "value":
                found[node.output[0]] = numpy_helper.to_array(item.t)
    read = {name for node in model.graph.node for name in node.input}
    read |= {value.name for value in model.graph.output}
    return {name: value for name, value in found.items() if name in read}


def _weights(model: onnx.ModelProto, values: Mapping[str, np.ndarray]) -> list[str]:
    """The trunk's, as `float32_layers` names them."""
    tables = {value.name for value in model.graph.input} | {"head_weight", "head_bias"}
    nodes = [node for node in model.graph.node if node.op_type in WEIGHTED]
    own = [[name for name in node.input[1:] if name in values] for node in nodes]
    return [names[0] for names in own if names and names[0] not in tables]


def _nodes(model: onnx.ModelProto, without: Collection[str] = (), multiplied: str = "") -> Nodes:
    """What makes each value: kind, inputs and attributes; constants are `tensors_of`'.

    Args:
        without: kinds of nodes to look through, to what they are given.
        multiplied: a constant whose products are looked through too.
    """
    made, found = dict[str, str](), Nodes()
    for node in model.graph.node:
        given = [made.get(name, _whole(name) if without else name) for name in node.input]
        if node.op_type in without or (node.op_type == "Mul" and multiplied in given):
            made[node.output[0]] = given[0]
        elif node.op_type != "Constant":
            found[tuple(node.output)] = (node.op_type, node.domain, given, _told(node))
    return found


def _told(node: onnx.NodeProto) -> list[tuple[str, object]]:
    """A node's attributes; what a shape is filled with as float16 has it, which names no type."""
    if node.op_type == "ConstantOfShape":
        values = [numpy_helper.to_array(x.t) for x in node.attribute if x.name == "value"]
        value = values[0] if values else np.zeros(1, np.float32)
        if value.dtype.kind == "f":
            return [("value", float16_of(value.reshape(()), "value").item())]
    return sorted((x.name, x.SerializeToString(deterministic=True)) for x in node.attribute)


def _half_nodes(base: onnx.ModelProto, model: onnx.ModelProto) -> Nodes:
    """A float16 graph's, whose copies of what splits the bank's row stand for the original."""
    ours = {name for node in base.graph.node for name in node.output}
    plain = onnx.ModelProto.FromString(model.SerializeToString())
    for node in plain.graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                short = name.removesuffix("_full")
                if short in ours and name not in ours:
                    names[place] = short
    return _nodes(plain, {"Cast"})


def _whole(name: str) -> str:
    return name.removesuffix("_quantized")


def _is(value: np.ndarray | None, kind: str) -> bool:
    return value is not None and value.dtype == np.dtype(kind)


def _same_tensors(
    wanted: Mapping[str, np.ndarray], held: Mapping[str, np.ndarray], source: str
) -> Iterator[str]:
    for name in sorted(wanted.keys() ^ held.keys()):
        yield f"it {'lacks' if name in wanted else 'holds'} {name}, unlike the {source} graph"
    for name in sorted(wanted.keys() & held.keys()):
        value, found = wanted[name], held[name]
        same = value.dtype == found.dtype and value.shape == found.shape
        if not same or value.tobytes() != found.tobytes():
            yield f"its {name} is not that of the {source} graph"


def _same_nodes(wanted: Nodes, held: Nodes, source: str) -> Iterator[str]:
    for outputs in sorted(wanted.keys() | held.keys()):
        if wanted.get(outputs) != held.get(outputs):
            yield f"it computes {outputs[0]} otherwise than the {source} graph"


def _same_types(
    wanted: onnx.ModelProto, held: onnx.ModelProto, source: str, *, image: int = 0
) -> Iterator[str]:
    """Types of inputs and outputs, but that of images where they may be of type `image` too."""
    known, found = (
        {x.name: x.type.tensor_type.elem_type for x in (*m.graph.input, *m.graph.output)}
        for m in (wanted, held)
    )
    if image and found.get("image") == image:
        known["image"] = image
    if known != found:
        yield f"its inputs and outputs are not of the {source} graph's types"
