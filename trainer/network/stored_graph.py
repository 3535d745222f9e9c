"""A backbone's traced graph as plain JSON, so that nothing of what made it is needed again.

Only operations that make tensors of tensors are ever written or read, by their ATen names, and
arithmetic on sizes. A graph from elsewhere can therefore compute, and nothing else: it names no
other function, opens no file, and its size is checked before it runs.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn

from prunion.runtime.base import Fields, is_whole, reason_of, shown
from prunion.runtime.errors import CheckpointError, UnsupportedGraphError
from prunion.trainer.backbone import LONGEST_NAME, given_name, op_name, unfit_name
from prunion.trainer.channels import HANDLERS, ONE_IMAGE
from prunion.trainer.network.shapes import MAKERS, TYPES, unfit_type, without_memory

__all__ = ["AROUND", "frozen_tensors", "graph_from_json", "graph_to_json"]

FORMAT_VERSION = 1
AROUND = "around_bytes"  # beside the nodes: what its ONNX file was found to hold around the tensors
OPERATIONS = frozenset(HANDLERS) | {"sym_size", "einsum"}
# Of the sizes of a batch, which are whole numbers.
ON_SIZES = {f.__name__: f for f in (operator.mul, operator.add, operator.sub, operator.floordiv)}
# Torch's own constants among the arguments, as `{"dtype": "float32"}`.
CONSTANTS: dict[str, type] = {
    "dtype": torch.dtype,
    "layout": torch.layout,
    "memory_format": torch.memory_format,
}
# torch.fx writes names into the source of a function: nothing may end a word or a string there.
NAME = re.compile(r"[A-Za-z_]\w{0,199}", re.ASCII)
MOST_NODES, MOST_ELEMENTS, DEEPEST = 100_000, 2**30, 8
MOST_CHOSEN = 2**16  # whole numbers of a tensor that are kept with the graph


def graph_to_json(module: fx.GraphModule) -> dict[str, Any]:
    """The graph of a traced backbone, without the values of its tensors.

    Raises UnsupportedGraphError for an operation or an argument that could not be read back.
    """
    nodes = []
    for node in module.graph.nodes:
        value: dict[str, Any] = {"name": node.name, "op": node.op}
        if node.op == "placeholder":
            value["shape"] = [int(n) for n in node.meta["val"].shape[1:]]
        elif node.op == "get_attr":
            tensor = operator.attrgetter(node.target)(module)
            if why := unfit_name(node.target):
                raise UnsupportedGraphError(
                    f"the tensor {shown(node.target)} cannot be kept in a checkpoint: {why}"
                )
            if why := unfit_type(tensor.dtype):
                readers = ", ".join(user.name for user in node.users)
                raise UnsupportedGraphError(
                    f"node {readers}: it reads the tensor {shown(given_name(node.target))}, {why}"
                )
            value |= {"tensor": node.target, "shape": list(tensor.shape)}
            weight = isinstance(tensor, nn.Parameter)
            value |= {"dtype": _leaf(tensor.dtype), "learns": weight and tensor.requires_grad}
            if weight and not tensor.requires_grad:  # by its owner's wish; counted as a weight
                value["frozen"] = True
            if not tensor.is_floating_point() and tensor.numel() <= MOST_CHOSEN:
                value["values"] = [int(n) for n in tensor.flatten().tolist()]
        else:
            if node.op == "call_function":
                value["target"] = _target_name(node)
            value["args"] = [_plain(node, x) for x in node.args]
            if node.kwargs:
                value["kwargs"] = {k: _plain(node, x) for k, x in node.kwargs.items()}
        nodes.append(value)
    return {"format_version": FORMAT_VERSION, "nodes": nodes}


def frozen_tensors(graph: Mapping[str, Any]) -> frozenset[str]:
    """The parameters of `graph_to_json` that their owner froze, by their names in the trunk."""
    return frozenset(node["tensor"] for node in graph["nodes"] if node.get("frozen"))


def graph_from_json(value: Any, source: str) -> fx.GraphModule:
    """The traced backbone that `graph_to_json` wrote, its tensors zero but for whole numbers.

    Every node's `meta["val"]` is a tensor without memory, of a batch of two, and `meta[ONE_IMAGE]`
    the same of a batch of one: images may lie along one axis with their tokens or parts.

    Raises CheckpointError, naming `source`, if it is damaged, of another version, or asks for an
    operation or a size that no backbone has.
    """
    fields = Fields(value, "", source, CheckpointError, "copy the whole folder again")
    if fields.get("format_version") != FORMAT_VERSION:
        raise fields.fail("format_version", f"is not {FORMAT_VERSION}")
    root, graph = nn.Module(), fx.Graph()
    known: dict[str, fx.Node] = {}
    for entry in fields.each("nodes", MOST_NODES):
        name = entry.text("name", 200)
        if not NAME.fullmatch(name) or name in known:
            raise entry.fail("name", f"is {shown(name)}, no name or one that was given before")
        try:
            node = _node(entry, name, root, graph, known)
            with torch.no_grad():
                node.meta["val"] = without_memory(node, root)
        except CheckpointError:
            raise
        except Exception as exc:  # torch has many errors for arguments that do not fit
            raise entry.fail("args", f"cannot be computed ({reason_of(exc)})") from None
        if node.name != name:
            raise entry.fail("name", f"is {shown(name)}, a word of Python's")
        _check_size(entry, node.meta["val"])
        known[name] = node
    ops = [node.op for node in graph.nodes]
    if ops.count("placeholder") != 1 or ops[-1:] != ["output"] or ops.count("output") != 1:
        raise fields.fail("nodes", "have not one input and, at the end, one output")
    with torch.no_grad():
        for node in graph.nodes:
            try:
                node.meta[ONE_IMAGE] = without_memory(node, root, ONE_IMAGE)
            except Exception as exc:  # as above
                problem = f"cannot be computed for one image ({reason_of(exc)})"
                raise fields.fail("nodes", problem) from None
    return fx.GraphModule(root, graph)


def _target_name(node: fx.Node) -> str:
    name, target = op_name(node), node.target
    if target is operator.getitem:
        return name
    for word, function in ON_SIZES.items():
        if target is function:
            return f"operator.{word}"
    if not isinstance(target, torch._ops.OpOverload) or not _computes(target):
        raise UnsupportedGraphError(
            f"node {node.name}: {name or node.target} cannot be kept in a checkpoint: choose "
            "another backbone, or cut it before ([backbone] cut)"
        )
    return f"{name}.{target._overloadname}"


def _computes(target: torch._ops.OpOverload) -> bool:
    """Whether it makes tensors of tensors and does nothing else."""
    schema = target._schema
    namespace, _, name = schema.name.partition("::")
    if namespace != "aten" or schema.is_mutable:
        return False
    if name in OPERATIONS or name in MAKERS:
        return True
    takes = str(schema.arguments[0].type) if schema.arguments else ""
    gives = {str(value.type) for value in schema.returns}
    tensors = {"Tensor", "List[Tensor]"}
    return not name.startswith("_") and takes in tensors and bool(gives) and gives <= tensors


def _plain(node: fx.Node, value: Any, depth: int = 0) -> Any:
    """An argument as JSON: what JSON has no word for becomes an object of one key."""
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)) and depth < DEEPEST:
        return [_plain(node, x, depth + 1) for x in value]
    if isinstance(value, torch.device):
        return {"device": str(value)}
    for kind, cls in CONSTANTS.items():
        if isinstance(value, cls):
            return {kind: _leaf(value)}
    raise UnsupportedGraphError(
        f"node {node.name}: its argument {shown(value)} cannot be kept in a checkpoint: choose "
        "another backbone, or cut it before ([backbone] cut)"
    )


def _leaf(constant: object) -> str:
    """`float32` of `torch.float32`."""
    return str(constant).rpartition(".")[2]


def _node(
    entry: Fields, name: str, root: nn.Module, graph: fx.Graph, known: Mapping[str, fx.Node]
) -> fx.Node:
    op = entry.text("op", 20)
    if op == "placeholder":
        node = graph.create_node(op, name, (), {}, name)
        node.meta["shape"] = (2, *_shape(entry))
        return node
    if op == "get_attr":
        tensor = entry.text("tensor", LONGEST_NAME)
        if unfit_name(tensor):
            raise entry.fail("tensor", f"is {shown(tensor)}, no name of a tensor")
        dtype = entry.text("dtype", 20)
        if dtype not in TYPES:
            raise entry.fail("dtype", f"is {shown(dtype)}, none of {', '.join(TYPES)}")
        empty = _values(entry, torch.zeros(_shape(entry), dtype=getattr(torch, dtype)))
        _add_tensor(entry, root, tensor, empty)
        return graph.create_node(op, tensor, (), {}, name)
    if op not in ("call_function", "output"):
        raise entry.fail("op", f"is {shown(op)}, which no backbone has")
    target: Any = "output" if op == "output" else _target(entry)
    args = tuple(_value(entry, x, known) for x in entry.items("args", 1000))
    given = entry.get("kwargs", {})
    if not isinstance(given, dict):
        raise entry.fail("kwargs", "must be an object")
    if not all(map(NAME.fullmatch, given)):
        raise entry.fail("kwargs", "hold a key that is no name")
    kwargs = {key: _value(entry, x, known) for key, x in given.items()}
    return graph.create_node(op, target, args, kwargs, name)


def _target(entry: Fields) -> Callable[..., Any]:
    text = entry.text("target", 200)
    if text == "getitem":
        return operator.getitem
    name, _, overload = text.partition(".")
    if name == "operator" and overload in ON_SIZES:
        return ON_SIZES[overload]
    if not NAME.fullmatch(name) or not hasattr(torch.ops.aten, name):
        raise entry.fail("target", f"is {shown(text)}, which this prunion cannot follow")
    packet = getattr(torch.ops.aten, name)
    if not isinstance(packet, torch._ops.OpOverloadPacket) or overload not in packet.overloads():
        raise entry.fail("target", f"is {shown(text)}, which the installed torch has not")
    function: torch._ops.OpOverload = getattr(packet, overload)
    if not _computes(function):
        raise entry.fail("target", f"is {shown(text)}, which this prunion cannot follow")
    return function


def _value(entry: Fields, value: Any, known: Mapping[str, fx.Node], depth: int = 0) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, list) and depth < DEEPEST:
        return [_value(entry, x, known, depth + 1) for x in value]
    if isinstance(value, dict) and len(value) == 1:
        ((kind, text),) = value.items()
        if kind == "node" and isinstance(text, str) and text in known:
            return known[text]
        if kind == "float" and text in ("inf", "-inf", "nan"):
            return float(text)
        if kind == "device" and text == "cpu":
            return torch.device("cpu")
        constant = getattr(torch, text, None) if isinstance(text, str) else None
        if kind in CONSTANTS and isinstance(constant, CONSTANTS[kind]):
            return constant
    raise entry.fail("args", f"hold {shown(value)}, which is no argument")


def _shape(entry: Fields) -> tuple[int, ...]:
    shape = entry.items("shape", 8)
    if not all(is_whole(n, 0, 2**24) for n in shape) or math.prod(shape) > MOST_ELEMENTS:
        raise entry.fail("shape", f"is {shown(shape)}, no shape of a backbone's tensor")
    return tuple(shape)


def _values(entry: Fields, zeros: torch.Tensor) -> torch.Tensor:
    """Whole numbers may choose channels, whose units then depend on them; an earlier file's not."""
    if "values" not in entry.value or zeros.is_floating_point():
        return zeros
    values = entry.items("values", MOST_CHOSEN)
    if len(values) != zeros.numel() or not all(is_whole(n, -(2**63), 2**63 - 1) for n in values):
        raise entry.fail("values", f"are not {zeros.numel()} whole numbers")
    return torch.tensor(values, dtype=torch.int64).to(zeros.dtype).reshape(zeros.shape)


def _add_tensor(entry: Fields, root: nn.Module, name: str, value: torch.Tensor) -> None:
    learns = entry.flag("learns")
    frozen = "frozen" in entry.value and entry.flag("frozen")
    *path, leaf = name.split(".")
    module = root
    for step in path:
        if step not in module._modules:
            module.add_module(step, nn.Module())
        module = module.get_submodule(step)
    if leaf in module._parameters or leaf in module._buffers:
        return  # read at two places
    if learns and not value.is_floating_point():
        raise entry.fail("learns", "is true of whole numbers")
    if learns and frozen:
        raise entry.fail("frozen", "is true of a tensor that learns")
    if learns or frozen:
        module.register_parameter(leaf, nn.Parameter(value, requires_grad=learns))
    else:
        module.register_buffer(leaf, value)


def _check_size(entry: Fields, value: Any) -> None:
    values = value if isinstance(value, (list, tuple)) else [value]
    for each in values:
        if isinstance(each, torch.Tensor) and each.numel() > MOST_ELEMENTS:
            raise entry.fail("args", f"make a tensor of shape {list(each.shape)}, which is too big")
