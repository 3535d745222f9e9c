"""A backbone as a flat graph of ATen operations, without in-place writes."""

from __future__ import annotations

import operator

import torch
from torch import fx, nn

from prunion.runtime.base import reason_of
from prunion.runtime.errors import UnsupportedGraphError

__all__ = ["name_norms", "op_name", "trace"]

NORM_TENSORS = ("weight", "bias", "running_mean", "running_var")
VIEWS = frozenset(
    "slice select narrow view reshape unsqueeze transpose permute split chunk".split()
)
# What changes nothing in inference: the last copies a constant of the forward function.
IDLE = frozenset(
    "dropout dropout_ feature_dropout alpha_dropout detach detach_ lift_fresh_copy".split()
)
GUARDS = frozenset(["_assert_tensor_metadata"])


def trace(model: nn.Module, height: int, width: int) -> fx.GraphModule:
    """Trace `model` (`[N, 3, H, W]` to one tensor) with a symbolic batch, in inference form.

    Parameters keep their names. Every node's `meta["val"]` holds its fake tensor. Dropout is
    dropped, in-place operations become ordinary ones.

    Raises:
        UnsupportedGraphError: torch.export cannot follow the model, or the flat graph does not
            compute the same function.
    """
    model = model.eval()
    example = torch.randn(2, 3, height, width)
    batch = torch.export.Dim("N", min=1)
    try:
        program = torch.export.export(model, (example,), dynamic_shapes=({0: batch},))
        module = program.module()
    except Exception as exc:  # torch.export raises many unrelated types
        first = reason_of(exc)
        raise UnsupportedGraphError(
            f"torch.export cannot trace {type(model).__name__} at {height}x{width}: {first}"
        ) from exc
    assert isinstance(module, fx.GraphModule)
    for node in list(module.graph.nodes):
        if node.op == "call_module" or op_name(node) in GUARDS:  # torch.export adds them
            module.graph.erase_node(node)
        elif node.op == "call_function":
            _drop_idle(node)
    views = _functionalise(module.graph)
    _single_output(module.graph)
    module.graph.eliminate_dead_code()
    module.graph.set_codegen(fx.graph.CodeGen())
    module = fx.GraphModule(module, module.graph)  # torch.export's own cannot switch to training
    _check_same(model, module, example, views)
    _keep_buffers(module)
    return module


def op_name(node: fx.Node) -> str:
    """`conv2d` for `torch.ops.aten.conv2d.default`, `getitem` for tuple access, `""` otherwise."""
    if node.op != "call_function":
        return ""
    if node.target is operator.getitem:
        return "getitem"
    schema = getattr(node.target, "_schema", None)
    return schema.name.split("::")[-1] if schema is not None else str(node.target)


def name_norms(module: fx.GraphModule) -> None:
    """Name every batch norm's tensors as a BatchNorm module of its own would, in place.

    A module may call `F.batch_norm` twice with tensors of any name. Whatever follows knows a norm
    by the module that holds its `running_mean`: so each set of tensors gets one, and nodes that
    read the same set share it.
    """
    owners: dict[tuple[str, ...], str] = {}
    for node in [n for n in module.graph.nodes if op_name(n) == "batch_norm"]:
        reads = [x if isinstance(x, fx.Node) else None for x in node.args[1:5]]
        key = tuple("" if x is None else str(x.target) for x in reads)
        if key not in owners:
            owner = key[2].rpartition(".")[0]
            usual = [f"{owner}.{leaf}".lstrip(".") for leaf in NORM_TENSORS]
            if any(name not in ("", wanted) for name, wanted in zip(key, usual, strict=True)):
                owner = key[2] + "_norm"
            if owner in owners.values():  # the same statistics, another scale or shift
                owner += f"_{len(owners)}"
            owners[key] = owner
        for x, leaf in zip(reads, NORM_TENSORS, strict=True):
            name = f"{owners[key]}.{leaf}".lstrip(".")
            if x is not None and x.target != name:
                node.replace_input_with(x, _also_named(module, x, name))
    module.graph.eliminate_dead_code()
    module.recompile()


def _also_named(module: fx.GraphModule, node: fx.Node, name: str) -> fx.Node:
    """A node that reads the tensor of `node` by another name, which it is given."""
    value = operator.attrgetter(str(node.target))(module)
    owner, _, leaf = name.rpartition(".")
    if not _has_module(module, owner):
        module.add_submodule(owner, nn.Module())
    if isinstance(value, nn.Parameter):
        module.get_submodule(owner).register_parameter(leaf, value)
    else:
        module.get_submodule(owner).register_buffer(leaf, value)
    with module.graph.inserting_before(node):
        new = module.graph.get_attr(name)
    new.meta = dict(node.meta)
    return new


def _has_module(module: nn.Module, name: str) -> bool:
    try:
        module.get_submodule(name)
    except AttributeError:
        return False
    return True


def _keep_buffers(module: fx.GraphModule) -> None:
    """Make what the graph reads part of the state dict, which is all that a checkpoint keeps."""
    for node in module.graph.nodes:
        if node.op == "get_attr":
            owner, _, leaf = str(node.target).rpartition(".")
            holder = module.get_submodule(owner)
            if (value := dict(holder.named_buffers(recurse=False)).get(leaf)) is not None:
                holder.register_buffer(leaf, value, persistent=True)


def _single_output(graph: fx.Graph) -> None:
    """torch.export returns a flat tuple; a graph run by hand returns its one tensor."""
    output = next(n for n in graph.nodes if n.op == "output")
    values = output.args[0]
    if isinstance(values, tuple | list):
        if len(values) != 1:
            raise UnsupportedGraphError(
                f"the backbone returns {len(values)} tensors, not one: "
                "turn its auxiliary outputs off"
            )
        output.args = (values[0],)


def _drop_idle(node: fx.Node) -> None:
    if op_name(node) in IDLE:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        node.replace_all_uses_with(source)
        node.graph.erase_node(node)


def _functionalise(graph: fx.Graph) -> list[str]:
    """Turn `relu_` and its like into `relu`; later readers of the overwritten value follow.

    Returns the writes that this loses if the whole tensor is read later: those into parts of it.
    """
    views: list[str] = []
    order = {node: position for position, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        name = op_name(node)
        if not name.endswith("_") or name.endswith("__"):
            continue
        packet = getattr(torch.ops.aten, name[:-1], None)
        overload = node.target._overloadname
        if packet is None or not hasattr(packet, overload):
            raise UnsupportedGraphError(f"node {node.name}: in-place operation {name} is unknown")
        node.target = getattr(packet, overload)
        overwritten = node.args[0]
        later = {user for user in overwritten.users if order[user] > order[node]}
        overwritten.replace_all_uses_with(node, delete_user_cb=later.__contains__)
        if op_name(overwritten) in VIEWS:
            views.append(f"node {node.name}: {name} writes into a part of another tensor")
    return views


def _check_same(
    model: nn.Module, module: fx.GraphModule, example: torch.Tensor, views: list[str]
) -> None:
    with torch.no_grad():
        expected, got = model(example.clone()), module(example.clone())
    if not isinstance(got, torch.Tensor) or not torch.allclose(
        expected, got, rtol=1e-3, atol=1e-4 * float(expected.abs().max()) + 1e-12
    ):
        cause = f"{views[0]}, and " if views else ""
        fix = (
            "compute a new tensor there (torch.where, torch.cat)" if views else "rewrite the model"
        )
        raise UnsupportedGraphError(
            f"{cause}the traced graph of {type(model).__name__} does not compute the model's "
            f"function: {fix}, or choose another backbone; `keep` cannot help here"
        )
