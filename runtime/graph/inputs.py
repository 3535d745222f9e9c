"""What an exported ONNX graph takes, and how it is read: its inputs, tables, nodes' attributes,
and what is told of a node that cannot be followed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from prunion.runtime.base import install_hint, reason_of
from prunion.runtime.errors import BundleError, MissingDependencyError, UnsupportedGraphError

if TYPE_CHECKING:
    import onnx

__all__ = [
    "ADAPTERS",
    "PER_REQUEST",
    "TABLES",
    "TABLE_INPUTS",
    "attribute",
    "input_shapes",
    "input_types",
    "inputs_without_defaults",
    "list_attribute",
    "load_graph",
    "no_graph",
    "refusal",
    "stored_tables",
    "uncut_channels",
]

# What changes with every request; the other inputs are tables with a row per domain.
PER_REQUEST = ("image", "domain")
# The tables that every graph has.
TABLES = ("bank", "head_weight", "head_bias")
# What a domain has of its own beside convolutions, of methods that give it such.
ADAPTERS = "adapters"
# What an exported graph may hold as tables with a row per domain; the rest belongs to the trunk.
TABLE_INPUTS = (*TABLES, "head_columns", "pixels", ADAPTERS)


def load_graph(graph: Path | str | bytes) -> tuple[onnx.ModelProto, ModuleType]:
    """The model and the package onnx. Raises BundleError, MissingDependencyError."""
    try:
        import onnx
        import onnx.numpy_helper
    except ImportError:
        raise MissingDependencyError(
            f"this needs the package onnx: {install_hint('ort')}"
        ) from None
    try:
        data = graph if isinstance(graph, bytes) else Path(graph).read_bytes()
        model = onnx.load_from_string(data)
    except Exception as exc:  # protobuf raises its own, unrelated types
        raise BundleError(
            f"the graph is no readable ONNX file ({reason_of(exc)}): export the bundle again"
        ) from None
    if any(_lies_elsewhere(tensor) for tensor in _tensors(model.graph)):
        raise BundleError(
            "the graph keeps weights in a file beside it, which no hash covers: export it again"
        )
    return model, onnx


def _lies_elsewhere(tensor: onnx.TensorProto) -> bool:
    return bool(tensor.external_data) or tensor.data_location == tensor.EXTERNAL


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a graph and of the graphs that its nodes hold."""
    yield from graph.initializer
    for node in graph.node:
        for item in node.attribute:
            yield from (item.t, *item.tensors)
            for inner in (item.g, *item.graphs):
                yield from _tensors(inner)


def no_graph(path: Path) -> str:
    """Why a file is no ONNX graph that takes images and gives logits; "" if it is one."""
    if not path.is_file():
        return "is a folder"
    try:
        graph = load_graph(path)[0].graph
    except BundleError:
        return "is no ONNX graph"
    ours = "image" in (x.name for x in graph.input) and "logits" in (x.name for x in graph.output)
    return "" if ours else "is another network's graph"


def input_types(graph: Path | str | bytes) -> dict[str, str]:
    """numpy's name of each input's type."""
    model, onnx = load_graph(graph)
    kinds = {i.name: i.type.tensor_type.elem_type for i in model.graph.input}
    return {n: onnx.helper.tensor_dtype_to_np_dtype(kind).name for n, kind in kinds.items()}


def input_shapes(graph: Path | str | bytes) -> dict[str, tuple[int, ...]]:
    """Each input's shape, 0 for a symbolic size."""
    model, _ = load_graph(graph)
    return {
        i.name: tuple(d.dim_value for d in i.type.tensor_type.shape.dim) for i in model.graph.input
    }


def stored_tables(graph: Path | str | bytes) -> dict[str, np.ndarray]:
    """The tables with a row per domain that a graph holds as defaults, by name."""
    model, onnx = load_graph(graph)
    held = (tensor for tensor in model.graph.initializer if tensor.name in TABLE_INPUTS)
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in held}


def inputs_without_defaults(graph: Path | str | bytes) -> bytes:
    """The same graph with its tables as plain inputs that must be fed.

    TensorRT and OpenVINO read an input that has a default as a constant; what must take new
    domains without a rebuild needs real inputs. A specialised graph has none and stays as it is.
    """
    model, _ = load_graph(graph)
    inputs = {value.name for value in model.graph.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in inputs]
    if len(kept) < len(model.graph.initializer):
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)
    return bytes(model.SerializeToString())


def refusal(node: onnx.NodeProto, reason: str) -> UnsupportedGraphError:
    """The error for a node that cannot be sliced."""
    name = node.name or (node.output[0] if node.output else "?")
    return UnsupportedGraphError(f"node {name!r} ({node.op_type}) cannot be sliced: {reason}")


def uncut_channels(value: onnx.ValueInfoProto) -> np.ndarray | None:
    """A graph input's channels `[C]`, none of which is in a unit; None where C is not known."""
    dims = value.type.tensor_type.shape.dim
    known = len(dims) == 4 and dims[1].dim_value > 0
    return np.full(dims[1].dim_value, -1) if known else None


def attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    """An attribute of a node that is a whole number."""
    return next((item.i for item in node.attribute if item.name == name), default)


def list_attribute(node: onnx.NodeProto, name: str) -> list[int] | None:
    """An attribute of a node that is a list of whole numbers; None where it has none."""
    return next((list(item.ints) for item in node.attribute if item.name == name), None)
