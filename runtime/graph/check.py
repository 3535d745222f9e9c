"""A graph from elsewhere, checked before anything reads it: its operators, its tensors, its sizes.

ONNX Runtime would run whatever a file says: a loop without an end, a constant of a terabyte. And
what rewrites a graph may rely on what is checked here: every name is made once, every weight has
the bytes that its shape needs, every node the inputs of its kind.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from prunion.runtime.base import reason_of, shown
from prunion.runtime.errors import BundleError, UnsupportedGraphError
from prunion.runtime.graph.inferred import infer_sizes
from prunion.runtime.graph.inputs import ADAPTERS, load_graph
from prunion.runtime.graph.sizes import check_sizes, for_one_image

if TYPE_CHECKING:
    import onnx

__all__ = ["OPERATORS", "check_graph", "check_operators", "light_copy"]

# What a convolutional network's export consists of: nothing with a graph inside, nothing random,
# no sequences, no texts, no functions of the file's own.
OPERATORS = frozenset(
    "Abs Add And ArgMax ArgMin AveragePool BatchNormalization Cast CastLike Ceil Celu Clip Concat "
    "Constant ConstantOfShape Conv ConvInteger ConvTranspose Cos CumSum DepthToSpace "
    "DequantizeLinear Div Dropout DynamicQuantizeLinear Einsum Elu Equal Erf Exp Expand Flatten "
    "Floor Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool "
    "Greater GreaterOrEqual GroupNormalization HardSigmoid HardSwish Hardmax Identity "
    "InstanceNormalization LRN LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax "
    "LpNormalization LpPool MatMul MatMulInteger Max MaxPool Mean MeanVarianceNormalization Min "
    "Mish Mod Mul Neg Not Or PRelu Pad Pow QLinearConv QLinearMatMul QuantizeLinear Range "
    "Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin "
    "ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize Round ScatterElements ScatterND Selu "
    "Shape Shrink Sigmoid Sign Sin Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt "
    "Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Where Xor".split()
)
DOMAINS = ("", "ai.onnx")
# Bytes: shapes, axes and sizes are read by shape inference, weights are not. The sizes that the
# bank is split into are two for each norm of a network.
SMALL, SMALL_WHOLE = 1024, 64 * 1024
FIX = "export the bundle again"


def check_graph(
    graph: bytes, shapes: Mapping[str, tuple[int, ...]], where: str, *, image: str
) -> None:
    """Check all of a graph that a reader of the file relies on.

    Args:
        shapes: the inputs that it may have, 0 for a size that is not known.
        image: numpy's name of the type of images that it takes.
        where: what messages call it.

    Raises:
        BundleError: something in it is not as prunion writes it.
    """
    model, onnx = load_graph(graph)
    try:
        check_operators(model)
        _check_tensors(model.graph)
        _check_inputs(model.graph, shapes)
        _check_image(model.graph, image)
        light = light_copy(model)
        onnx.checker.check_model(light)
        held = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
        one = for_one_image(light, shapes, held)
        check_sizes(infer_sizes(one))
    except (BundleError, UnsupportedGraphError) as exc:
        raise BundleError(f"{where}: {exc}: {FIX}") from None
    except Exception as exc:  # onnx has several unrelated error types
        raise BundleError(f"{where} is no sound ONNX graph ({reason_of(exc)}): {FIX}") from None


def check_operators(model: onnx.ModelProto) -> None:
    """Raise UnsupportedGraphError at the first node that no bundle's graph may hold."""
    if len(model.functions):
        raise UnsupportedGraphError("the graph has functions of its own, which no bundle may")
    for node in model.graph.node:
        inner = any(x.HasField("g") or len(x.graphs) for x in node.attribute)
        if node.op_type not in OPERATORS or node.domain not in DOMAINS or inner:
            kind = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            raise UnsupportedGraphError(
                f"node {shown(node.name)} is a {shown(kind)}, which no bundle's graph may hold"
            )


def light_copy(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model whose large weights are inputs: what checks and infers shapes copies all it is given.

    With ResNet-50's weights that was a third of an export's memory.
    """
    from onnx import ModelProto, helper

    light = ModelProto(ir_version=model.ir_version)
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
        whole = tensor.data_type == tensor.INT64
        if tensor.ByteSize() <= (SMALL_WHOLE if whole else SMALL):
            graph.initializer.append(tensor)
        elif tensor.name not in given:
            kind = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            graph.input.append(kind)
    return light


def _check_tensors(graph: onnx.GraphProto) -> None:
    """Every weight's bytes are as many as its shape and type need."""
    if len(graph.sparse_initializer) or len(graph.quantization_annotation):
        raise BundleError("it holds sparse or annotated weights")
    names: set[str] = set()
    for tensor in graph.initializer:
        if not tensor.name or tensor.name in names:
            raise BundleError(f"it holds {shown(tensor.name)} twice")
        names.add(tensor.name)
    for tensor in (*graph.initializer, *_constants(graph)):
        what = shown(tensor.name)
        size = _item_bytes(tensor.data_type)
        if not size:
            raise BundleError(f"{what} has a type that no bundle holds ({tensor.data_type})")
        if any(dim < 0 for dim in tensor.dims):
            raise BundleError(f"{what} has a negative size")
        count = math.prod(tensor.dims)
        if tensor.HasField("raw_data"):
            held, needed = len(tensor.raw_data), count * size
        else:
            fields = (tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.double_data)
            held, needed = sum(map(len, fields)), count
        if held != needed:
            raise BundleError(f"{what} holds {held} values or bytes, and its shape needs {needed}")


def _constants(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    for node in graph.node:
        for item in node.attribute:
            if item.HasField("t"):
                yield item.t
            if len(item.tensors) or item.HasField("sparse_tensor") or len(item.sparse_tensors):
                raise BundleError(f"node {shown(node.name)} holds sparse or listed tensors")


def _item_bytes(kind: int) -> int:
    from onnx import TensorProto

    sizes: dict[int, int] = {
        TensorProto.FLOAT: 4,
        TensorProto.FLOAT16: 2,
        TensorProto.DOUBLE: 8,
        TensorProto.INT8: 1,
        TensorProto.UINT8: 1,
        TensorProto.INT32: 4,
        TensorProto.INT64: 8,
        TensorProto.BOOL: 1,
    }
    return sizes.get(kind, 0)


def _check_inputs(graph: onnx.GraphProto, shapes: Mapping[str, tuple[int, ...]]) -> None:
    for value in graph.input:
        if value.name not in shapes:
            raise BundleError(f"it has an input {shown(value.name)} that no bundle has")
        _check_shape(value.name, _sizes(value), shapes[value.name])
    listed, held = ADAPTERS in shapes, {tensor.name for tensor in graph.initializer}
    if listed and ADAPTERS not in held:
        raise BundleError(f"it holds no table {ADAPTERS!r}, which the manifest lists")
    if ADAPTERS in held and not listed:
        raise BundleError(f"it holds a table {ADAPTERS!r}, which the manifest does not list")
    for tensor in graph.initializer:
        if tensor.name in shapes:
            _check_shape(tensor.name, list(tensor.dims), shapes[tensor.name], whole=True)
    outputs = [value.name for value in graph.output]
    if outputs != ["logits"] or len(_sizes(graph.output[0])) != 2:
        raise BundleError(f"it gives {shown(outputs)}, not logits [N, Cmax]")


def _check_image(graph: onnx.GraphProto, wanted: str) -> None:
    """What the graph is listed as takes its kind of images: else it is another precision's file."""
    from onnx import helper

    for value in graph.input:
        found = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name
        if value.name == "image" and found != wanted:
            raise BundleError(f"its images are {found}, and those of its precision {wanted}")


def _check_shape(
    name: str, found: list[int], wanted: tuple[int, ...], *, whole: bool = False
) -> None:
    """A size of 0 is not known, but of a `whole` tensor it is 0."""
    fits = len(found) == len(wanted)
    pairs = zip(found, wanted, strict=True) if fits else ()
    if not fits or any((a or whole) and b and a != b for a, b in pairs):
        raise BundleError(f"{name} is {found}, and the manifest needs {list(wanted)} (0: any)")


def _sizes(value: onnx.ValueInfoProto) -> list[int]:
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]
