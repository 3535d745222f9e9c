"""What the nodes, tensors and norms of a traced graph are called."""

from __future__ import annotations

import operator
import re
from collections.abc import Collection, Sequence

import torch
from torch import fx, nn

__all__ = [
    "LAYERS",
    "LONGEST_NAME",
    "NORMS",
    "given_name",
    "is_in_place",
    "keep_names_apart",
    "layer_of_norm",
    "name_norms",
    "op_name",
    "put_tensor",
    "tensor_at",
    "unfit_name",
]

NORMS = "norms."  # what the names of the domains' BatchNorms begin with in the masked network
NORM_TENSORS = ("weight", "bias", "running_mean", "running_var")
# What the trunk's own modules are called: a user's of that name would be lost, or read for them.
OURS = frozenset(["norms", "gates", "series", "affine", "beside", "pixel_norm"])
LAYERS = ("conv", "linear")  # what operations begin with whose second argument is a weight
PART = re.compile(r"[\w/@:+ -]+", re.ASCII)
LONGEST_PART, LONGEST_NAME, DEEPEST_NAME = 200, 1000, 31  # that files take
ROOT = "root"  # the module that tensors of none are moved into


def op_name(node: fx.Node) -> str:
    """`conv2d` for `torch.ops.aten.conv2d.default`, `getitem` for tuple access, `""` otherwise."""
    if node.op != "call_function":
        return ""
    if node.target is operator.getitem:
        return "getitem"
    schema = getattr(node.target, "_schema", None)
    return schema.name.split("::")[-1] if schema is not None else str(node.target)


def keep_names_apart(module: fx.GraphModule, but: Collection[str] = ()) -> fx.GraphModule:
    """`module` with names for its tensors that nothing else will have; most keep theirs.

    A network may call a module `norms`, which is what holds the domains' BatchNorms here, and a
    tensor of its own `mean`, which is what the exported graph calls the result of a mean. Modules
    of such names get another (`norms_`), and tensors that lie in no module get one: names with a
    dot are given to tensors alone. What it has of `but` is ours already.
    """
    nodes = [node for node in module.graph.nodes if node.op == "get_attr"]
    paths = {node: str(node.target).split(".") for node in nodes}
    taken = {name for name, _ in module.named_children()} | {path[0] for path in paths.values()}
    firsts = {path[0] for path in paths.values() if len(path) > 1} & OURS - {*but}
    new = {name: _free(name + "_", taken) for name in sorted(firsts)}
    root = _free(ROOT, taken)
    for node, (first, *others) in paths.items():
        if not others or first in new:
            name = ".".join([new[first], *others] if others else [root, first])
            _give(module, node, name)
            node.target = name
    return fx.GraphModule(module, module.graph)  # takes along only what the graph still reads


def given_name(name: str) -> str:
    """What a layer or a tensor was called before `keep_names_apart`."""
    first, dot, others = name.partition(".")
    if first.rstrip("_") == ROOT and others and "." not in others:
        return others
    return first.rstrip("_") + dot + others if first.rstrip("_") in OURS else name


def layer_of_norm(target: str) -> str:
    """The backbone's name of a BatchNorm, from what stands for it in the masked network."""
    return target.removeprefix(NORMS).replace("/", ".")


def is_in_place(node: fx.Node) -> bool:
    """Whether an operator is one that writes into its first argument, as `add_`."""
    name = op_name(node)
    return name.endswith("_") and not name.endswith("__")


def tensor_at(module: nn.Module, name: str) -> torch.Tensor:
    """The parameter, buffer or constant of a dotted name."""
    value: torch.Tensor = operator.attrgetter(name)(module)
    return value


def put_tensor(module: nn.Module, name: str, value: torch.Tensor) -> None:
    """Give `module` a tensor of a dotted name, in modules that are made where there are none.

    A parameter becomes one, anything else a buffer; what had the name before is replaced.
    """
    owner, _, leaf = name.rpartition(".")
    for step in filter(None, owner.split(".")):
        if not hasattr(module, step):
            module.add_module(step, nn.Module())
        module = module.get_submodule(step)
    for held in (module._parameters, module._buffers):
        held.pop(leaf, None)
    if isinstance(value, nn.Parameter):
        module.register_parameter(leaf, value)
    else:
        module.register_buffer(leaf, value)


def unfit_name(name: str) -> str:
    """Why no file takes a tensor of this name, and the fix; empty if one does."""
    parts = name.split(".")
    longest = max(map(len, parts))
    if longest > LONGEST_PART:
        return f"its module's name has {longest} characters, give it at most {LONGEST_PART}"
    if len(name) > LONGEST_NAME:
        return f"its name has {len(name)} characters, give its modules shorter ones"
    if len(parts) > DEEPEST_NAME:
        return f"it lies in {len(parts) - 1} modules, nest at most {DEEPEST_NAME - 1}"
    named = all(map(PART.fullmatch, parts))
    return "" if named else "name its module with letters, digits and '_'"


def name_norms(module: fx.GraphModule) -> None:
    """Name every batch norm's tensors as a BatchNorm module of its own would, in place.

    A module may call `F.batch_norm` twice with tensors of any name. Whatever follows knows a norm
    by the module that holds its `running_mean`: so each set of tensors, with what is added to its
    variance, gets one, and nodes that read the same set share it.
    """
    owners: dict[tuple[object, ...], str] = {}
    for node in [n for n in module.graph.nodes if op_name(n) == "batch_norm"]:
        reads = [x if isinstance(x, fx.Node) else None for x in node.args[1:5]]
        if any(x is not None and x.op != "get_attr" for x in reads):
            continue  # one of them is computed from the images, which the walk refuses
        names = ["" if x is None else str(x.target) for x in reads]
        key = (*names, node.args[7])
        if key not in owners:
            owners[key] = _norm_owner(module, names, owners.values())
        for x, leaf in zip(reads, NORM_TENSORS, strict=True):
            name = f"{owners[key]}.{leaf}"
            if x is not None and x.target != name:
                node.replace_input_with(x, _also_named(module, x, name))
    module.graph.eliminate_dead_code()
    module.recompile()


def _norm_owner(module: nn.Module, names: Sequence[str], owners: Collection[str]) -> str:
    """The module for a norm's tensors: the one that they lie in, where they lie as in a BatchNorm.

    `/` stands for the dot in what holds all norms.
    """
    owner = names[2].rpartition(".")[0]
    usual = [f"{owner}.{leaf}" for leaf in NORM_TENSORS]
    as_usual = all(name in ("", wanted) for name, wanted in zip(names, usual, strict=True))
    if owner and as_usual and owner not in owners and "/" not in owner:
        return owner
    wanted = (owner if as_usual and owner else names[2] + "_norm").replace("/", "_")
    number, owner = 0, wanted
    while owner in owners or _has(module, owner):
        number += 1
        owner = f"{wanted}_{number}"
    return owner


def _has(module: nn.Module, name: str) -> bool:
    try:
        operator.attrgetter(name)(module)
    except AttributeError:
        return False
    return True


def _free(name: str, taken: Collection[str]) -> str:
    while name in taken:
        name += "_"
    return name


def _also_named(module: fx.GraphModule, node: fx.Node, name: str) -> fx.Node:
    """A node that reads the tensor of `node` by another name, which it is given."""
    _give(module, node, name)
    with module.graph.inserting_before(node):
        new = module.graph.get_attr(name)
    new.meta = dict(node.meta)
    return new


def _give(module: fx.GraphModule, node: fx.Node, name: str) -> None:
    """Give the tensor that `node` reads another name beside its own."""
    put_tensor(module, name, tensor_at(module, str(node.target)))
