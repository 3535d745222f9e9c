"""What a graph from elsewhere takes for one image: its tensors' sizes, and the work of its nodes.

A file of a few kilobytes may ask for a tensor of any size, or for hours. Sizes are inferred for one
image of the manifest's size and the tables that the file holds, so that all are numbers; what the
file says of its own tensors is not believed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from prunion.runtime.base import shown
from prunion.runtime.errors import BundleError
from prunion.runtime.graph.inferred import known_sizes
from prunion.runtime.graph.inputs import attribute, list_attribute

if TYPE_CHECKING:
    import onnx

__all__ = ["check_sizes", "for_one_image"]

MOST_ELEMENTS = 1 << 28  # of one tensor for one image: 1 GiB of float32
MOST_AT_ONCE = 4 * MOST_ELEMENTS  # of all that must be held together: a sum needs its terms
# Of one image: four times what a ViT-H takes for an image of 518 px, or minutes on a slow machine.
MOST_PRODUCTS = 1 << 42
# Of all else, such as a pooling's kernel at each of its places, which is never as quick.
MOST_STEPS = 1 << 37
# No larger than the largest of what they are given, whatever their sizes are.
WITHIN = frozenset(
    "Abs ArgMax ArgMin BatchNormalization Cast CastLike Ceil Celu Clip Cos CumSum DepthToSpace "
    "DequantizeLinear Dropout DynamicQuantizeLinear Elu Erf Exp Flatten Floor Gelu "
    "GlobalAveragePool GlobalLpPool GlobalMaxPool GroupNormalization HardSigmoid HardSwish Hardmax "
    "Identity InstanceNormalization LRN LayerNormalization LeakyRelu Log LogSoftmax "
    "LpNormalization MeanVarianceNormalization Mish Neg Not QuantizeLinear Reciprocal ReduceL1 "
    "ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum "
    "ReduceSumSquare Relu Reshape Round ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign "
    "Sin Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Tan Tanh "
    "ThresholdedRelu TopK Transpose Trilu Unsqueeze".split()
)
# So are these where all but one of their inputs are single numbers.
BROADCASTING = frozenset(
    "Add And Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod Mul Or PRelu Pow "
    "Sub Sum Where Xor".split()
)
# The place of the weight among the inputs of what slides it over an image.
SLIDING = {"Conv": 1, "ConvInteger": 1, "ConvTranspose": 1, "QLinearConv": 3}
MULTIPLYING = frozenset("Gemm MatMul MatMulInteger QLinearMatMul".split())
POOLING = frozenset("AveragePool LpPool MaxPool".split())
Sizes = Mapping[str, Sequence[int]]


def for_one_image(model: onnx.ModelProto, shapes: Sizes, held: Sizes) -> onnx.ModelProto:
    """The model with inputs of one image's sizes, and nothing said of what lies between them.

    Args:
        shapes: of the inputs, 0 for a size that is not known.
        held: of what the file holds for them, which goes before.
    """
    graph = model.graph
    for value in graph.input:
        known = held.get(value.name) or shapes.get(value.name, ())
        for dim, size in zip(value.type.tensor_type.shape.dim, known, strict=False):
            dim.dim_value = size or 1
    for value in graph.output:
        for dim in value.type.tensor_type.shape.dim:
            dim.Clear()
    del graph.value_info[:]
    return model


def check_sizes(graph: onnx.GraphProto) -> None:
    """Raise BundleError unless one image's memory and work are what a network's could be.

    Args:
        graph: of `for_one_image`, with every size that `infer_sizes` finds.
    """
    sizes = known_sizes(graph)
    elements = {name: _count(dims) for name, dims in sizes.items()}
    products: dict[str, int] = {}
    steps: dict[str, int] = {}
    for node in graph.node:
        given = [elements[name] for name in node.input if name]
        for name in filter(None, node.output):
            if name not in elements:
                elements[name] = _bound(node, given)
            if elements[name] > MOST_ELEMENTS:
                told = shown(sizes.get(name, [elements[name]]))
                raise BundleError(f"{shown(name)} would be {told}, too large for one image")
        made = sum(elements[name] for name in node.output if name)
        found = _products(node, sizes, elements)
        products[_named(node)] = products.get(_named(node), 0) + found
        read = 0 if node.op_type.startswith("Gather") else sum(given)  # which reads what it takes
        steps[_named(node)] = steps.get(_named(node), 0) + read + made * _window(node)
    _check_together(graph, elements)
    _check_work(products, MOST_PRODUCTS, "multiply-accumulates")
    _check_work(steps, MOST_STEPS, "steps beside them")


def _named(node: onnx.NodeProto) -> str:
    return f"node {shown(node.name)} ({node.op_type})"


def _bound(node: onnx.NodeProto, given: Sequence[int]) -> int:
    """The most elements that a result may have whose size is not known."""
    single = node.op_type in BROADCASTING and sum(count > 1 for count in given) <= 1
    if node.op_type in WITHIN or single:
        return max(given, default=1)
    raise BundleError(f"{_named(node)} makes a tensor whose size is not known")


def _check_work(work: Mapping[str, int], most: int, what: str) -> None:
    total = sum(work.values())
    if total > most:
        name = max(work, key=lambda x: work[x])
        raise BundleError(
            f"one image would take {total:,} {what}, more than {most:,}, most of them in {name}"
        )


def _check_together(graph: onnx.GraphProto, elements: Mapping[str, int]) -> None:
    """What is held at once for one image is bounded too, in the order in which the nodes stand."""
    last = {name: place for place, node in enumerate(graph.node) for name in node.input}
    held, made = 0, set[str]()
    for place, node in enumerate(graph.node):
        made.update(node.output)
        held += sum(elements.get(name, 0) for name in node.output)
        if held > MOST_AT_ONCE:
            raise BundleError(
                f"{_named(node)} would have {held:,} numbers held at once, too many for one image"
            )
        over = {name for name in node.input if last[name] == place} & made
        over |= {name for name in node.output if name not in last}  # nothing reads them
        held -= sum(elements.get(name, 0) for name in over)


def _products(node: onnx.NodeProto, sizes: Sizes, elements: Mapping[str, int]) -> int:
    """Multiply-accumulates of one node, or more of them than it has where a size is not known."""
    kind, made = node.op_type, elements[node.output[0]]
    if kind in SLIDING:
        weight = sizes[node.input[SLIDING[kind]]]
        places = elements[node.input[0]] if kind == "ConvTranspose" else made
        return places * _count(weight[1:])
    if kind in MULTIPLYING:
        dims = sizes.get(node.input[0]) or [elements[node.input[0]]]
        return made * max(dims[0 if kind == "Gemm" and attribute(node, "transA", 0) else -1], 1)
    if kind != "Einsum":
        return 0
    found = _einsum(node, [sizes.get(name) for name in node.input])
    if found is None:
        found = math.prod(elements[name] for name in node.input)
    if len(node.input) > 2 and found > MOST_ELEMENTS:  # two at a time, and what is between is held
        raise BundleError(f"{_named(node)} may hold {found:,} numbers, too many for one image")
    return found


def _einsum(node: onnx.NodeProto, given: Sequence[Sequence[int] | None]) -> int | None:
    """The product of the sizes of all that an Einsum runs over; None where one is not known."""
    equation = next((x.s.decode() for x in node.attribute if x.name == "equation"), "")
    terms = equation.replace(" ", "").split("->")[0].split(",")
    found: dict[str, int] = {}
    for term, dims in zip(terms, given, strict=False):
        if dims is None:
            return None
        before, dots, after = term.partition("...")
        between = len(dims) - len(before) - len(after)
        # Those that the dots stand for are counted from their last.
        inner = [f".{place}" for place in range(between, 0, -1)] if dots else []
        for label, size in zip([*before, *inner, *after], dims, strict=False):
            found[label] = max(found.get(label, 1), size)
    return math.prod(found.values())


def _window(node: onnx.NodeProto) -> int:
    """How many numbers each of a node's results is made of where they lie beside each other."""
    if node.op_type in POOLING:
        return _count(list_attribute(node, "kernel_shape") or ())
    return max(attribute(node, "size", 1), 1) if node.op_type == "LRN" else 1


def _count(dims: Iterable[int]) -> int:
    return math.prod(max(dim, 1) for dim in dims)
