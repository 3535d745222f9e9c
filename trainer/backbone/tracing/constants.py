"""What a network computes from its parameters and constants alone, computed once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from prunion.trainer.backbone.names import LAYERS, is_in_place, op_name, put_tensor, tensor_at
from prunion.trainer.backbone.tracing.tied import check_tied

__all__ = ["fold_constants"]

# What changes a tensor's shape, and neither its numbers nor their order.
RESHAPES = frozenset("alias clone contiguous detach reshape squeeze unsqueeze view".split())
BROADCASTS = frozenset("add div mul sub".split())
NEW = frozenset("new_zeros new_ones new_full new_empty".split())


def fold_constants(module: fx.GraphModule, *, parameters: bool = True, tuned: bool = True) -> None:
    """Replace what depends on no image by its value, in place.

    So a weight that is standardised, normalised or rebuilt from factors becomes one weight, by the
    name of its layer's where that is free. In-place writes into constants are followed.

    Args:
        parameters: False leaves whatever depends on a tensor of the module, for a caller that
            still has to load these.
        tuned: whether weights will learn.

    Raises UnsupportedGraphError if a parameter is used in several forms, which would learn apart.
    """
    known: dict[fx.Node, Any] = {}
    weights: set[fx.Node] = set()  # what is made of parameters
    learned: set[fx.Node] = set()  # and of one at least that learns
    made: dict[tuple[fx.Node, int], fx.Node] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            leaf = str(node.target).rpartition(".")[2]
            if not parameters and not leaf.startswith("lifted_tensor"):  # torch.export's own
                continue
            known[node] = held = tensor_at(module, str(node.target))
            if isinstance(held, nn.Parameter):
                weights.add(node)
            if isinstance(held, nn.Parameter) and held.requires_grad:
                learned.add(node)
            continue
        if node.op == "call_function" and _computable(node, known):
            with torch.no_grad():
                known[node] = _value(node, known)
            for nodes in (weights, learned):
                if nodes & set(node.all_input_nodes):
                    nodes.add(node)
            continue
        target = node.args[0] if is_in_place(node) else None
        written = known.get(target) if isinstance(target, fx.Node) else None
        for source in node.all_input_nodes:
            value = known.get(source)
            if source.op == "get_attr" or not isinstance(value, torch.Tensor):
                continue
            key = (source, value._version)  # a later write does not reach an earlier reader
            if key not in made:
                learns = source in learned if source in weights else None
                made[key] = _stored(module, source, value, node, learns)
            node.replace_input_with(source, made[key])
        if isinstance(written, torch.Tensor):
            _forget(written, known)
    if learned:
        stored = {source: new for (source, _), new in made.items()}
        times = Counter(source for source, _ in made)  # more than once where it is written into
        once = {x: new for x, new in stored.items() if x in learned and times[x] == 1}
        for source in _join_spellings(once):
            del stored[source]
        check_tied(module, known, stored, _value, tuned=tuned)
    module.graph.eliminate_dead_code()
    _name_after_layers(module)
    module.recompile()


def _computable(node: fx.Node, known: dict[fx.Node, Any]) -> bool:
    tags = getattr(node.target, "tags", ())
    if torch.Tag.nondeterministic_seeded in tags:
        return False
    needed = node.all_input_nodes
    if op_name(node) in NEW:  # of the tensor before them they take the type alone
        needed = [x for x in needed if x is not node.args[0]]
    elif not needed:
        return isinstance(node.meta.get("val"), torch.Tensor)
    return all(x in known for x in needed)


def _value(node: fx.Node, known: dict[fx.Node, Any]) -> Any:
    args, kwargs = node.args, {k: v for k, v in node.kwargs.items() if k != "device"}
    source = args[0] if args else None
    if op_name(node) in NEW and isinstance(source, fx.Node) and source not in known:
        args = (torch.empty(0, dtype=source.meta["val"].dtype), *args[1:])
    target: Any = node.target
    return target(
        *fx.node.map_arg(args, known.__getitem__), **fx.node.map_arg(kwargs, known.__getitem__)
    )


def _stored(
    module: fx.GraphModule,
    node: fx.Node,
    value: torch.Tensor,
    reader: fx.Node,
    learns: bool | None,
) -> fx.Node:
    """What `reader` reads from now on in place of `node`, whose `value` becomes the module's own.

    Args:
        learns: whether any parameter that it is made of learns; None where it is made of none.
    """
    name = f"constant_{node.name}"
    value = value.detach().clone()
    weight = learns is not None and value.is_floating_point()
    put_tensor(module, name, nn.Parameter(value, requires_grad=bool(learns)) if weight else value)
    with module.graph.inserting_before(reader):
        new = module.graph.get_attr(name)
    new.meta = {"val": value, "of": _first_parameter(node)}
    return new


def _join_spellings(stored: Mapping[fx.Node, fx.Node]) -> list[fx.Node]:
    """Have one parameter's shapes that broadcast alike, `[C, 1, 1]` and `[1, C, 1, 1]`, be one.

    Args:
        stored: what is read in place of what is computed.

    Returns what is no more read.
    """
    groups: dict[tuple[Any, ...], list[fx.Node]] = {}
    for source, new in stored.items():
        root: Any = source
        while op_name(root) in RESHAPES:
            root = root.args[0]
        if root.op == "get_attr":
            shape = list(new.meta["val"].shape)
            while shape[:1] == [1]:
                del shape[0]
            groups.setdefault((root.target, *shape), []).append(source)
    joined = []
    for group in groups.values():
        least = min(group, key=lambda x: stored[x].meta["val"].dim())
        one, first = stored[least], stored[group[0]]
        for new in (stored[source] for source in group if source is not least):
            same = torch.equal(new.meta["val"].flatten(), one.meta["val"].flatten())
            if same and all(_broadcasts(user, new) for user in new.users):
                if one is not first:
                    first.prepend(one)  # so that it stands before whatever reads it
                new.replace_all_uses_with(one)
        joined += [source for source in group if not stored[source].users]
    return joined


def _broadcasts(user: fx.Node, node: fx.Node) -> bool:
    """Whether `user` would give the same of a `node` without the ones before its shape."""
    others = [x.meta.get("val") for x in user.all_input_nodes if x is not node]
    dims = [x.dim() for x in others if isinstance(x, torch.Tensor)]
    return op_name(user) in BROADCASTS and max(dims, default=0) >= node.meta["val"].dim()


def _first_parameter(node: fx.Node) -> str:
    """The tensor that a constant is made of, by its name; the first where they are several."""
    while node.all_input_nodes:
        node = node.all_input_nodes[0]
    return str(node.target) if node.op == "get_attr" else ""


def _forget(written: torch.Tensor, known: dict[fx.Node, Any]) -> None:
    """A constant that an activation is written into is none from there on."""
    place = written.untyped_storage().data_ptr()
    for node in list(known):
        held = known[node]
        if isinstance(held, torch.Tensor) and held.untyped_storage().data_ptr() == place:
            del known[node]


def _name_after_layers(module: fx.GraphModule) -> None:
    """A layer's computed weight takes the name that it would have if it were a parameter."""
    taken = {str(n.target) for n in module.graph.nodes if n.op == "get_attr"}
    for node in [n for n in module.graph.nodes if n.op == "get_attr" and "of" in n.meta]:
        of, user = node.meta["of"], next(iter(node.users))
        if not of or not op_name(user).startswith(LAYERS) or user.args[1] is not node:
            continue
        owner = of.split(".parametrizations.")[0] if ".parametrizations." in of else ""
        owner = owner or of.rpartition(".")[0]
        name = f"{owner}.weight".lstrip(".")
        if name in taken:
            continue
        taken.add(name)
        value = getattr(module, str(node.target))
        delattr(module, str(node.target))
        put_tensor(module, name, value)
        node.target = name
