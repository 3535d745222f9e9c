"""What the nodes and norms of a traced graph are called."""

from __future__ import annotations

import operator

from torch import fx, nn

__all__ = ["name_norms", "op_name"]

NORM_TENSORS = ("weight", "bias", "running_mean", "running_var")


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
        if any(x is not None and x.op != "get_attr" for x in reads):
            continue  # one of them is computed from the images, which the walk refuses
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
