"""Operations that are written in several ways, written in one that channels can be followed in."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn

from prunion.trainer.backbone.names import op_name
from prunion.trainer.backbone.tracing.parts import NO_GRAD

__all__ = ["inline_regions", "rewrite"]

ELEMENTWISE = frozenset("add sub mul div maximum minimum where".split())
EXPANSIONS = frozenset("expand expand_as broadcast_to".split())
# What takes its sizes from another tensor, as what has them written out.
OF_ANOTHER = {"expand_as": "expand", "view_as": "view", "reshape_as": "reshape"}
aten = torch.ops.aten
# The same function by another name.
ALIASES = {
    aten.max.other: aten.maximum.default,
    aten.min.other: aten.minimum.default,
    aten.clip.default: aten.clamp.default,
    aten.clip.Tensor: aten.clamp.Tensor,
}


def inline_regions(module: fx.GraphModule) -> None:
    """Put the graphs of `with` regions (autocast, no_grad) where they are called, in place.

    One that changes what is computed shows when the graph is compared with the model.
    """
    for node in list(module.graph.nodes):
        inner = [x for x in node.all_input_nodes if x.op == "get_attr"]
        graphs = [getattr(module, str(x.target), None) for x in inner]
        place = next((i for i, x in enumerate(graphs) if isinstance(x, fx.GraphModule)), None)
        if node.op != "call_function" or place is None:
            continue
        region = graphs[place]
        assert isinstance(region, fx.GraphModule)
        given = iter(node.args[node.args.index(inner[place]) + 1 :])
        holes = [n for n in region.graph.nodes if n.op == "placeholder"]
        copies: dict[fx.Node, Any] = dict(zip(holes, given, strict=True))
        with module.graph.inserting_before(node):
            made = module.graph.graph_copy(region.graph, copies)
        for copied in copies.keys() - set(holes):
            copies[copied].meta[NO_GRAD] = True
        if isinstance(made, tuple | list):
            for pick in list(node.users):
                pick.replace_all_uses_with(made[pick.args[1]])
                module.graph.erase_node(pick)
        else:
            node.replace_all_uses_with(made)
        module.graph.erase_node(node)


def rewrite(module: fx.GraphModule) -> None:
    """Restate the graph in place; it computes the same.

    An expansion that its readers' broadcasting makes anyway goes; a maximum whose place nobody
    asks for, a part by `narrow` and a choice by constant indices become their plain forms; a mean
    that may run over channels becomes a sum times a constant, which stays right when channels go;
    a bilinear layer becomes a product with its weight, and one with its second input; a tensordot
    of the last axis and the first one becomes their product. A shape that is taken from another
    tensor is written out, so that either can lose channels of its own. Axes are counted from the
    front, and those that `squeeze()` drops are named: a batch of one image, or channels of which
    one is left, would go with them. What is computed twice is computed once.
    """
    for node in list(module.graph.nodes):
        node.target = ALIASES.get(node.target, node.target)
        name = op_name(node)
        if name in EXPANSIONS:
            _drop_broadcast(node)
        elif name in ("max", "min", "adaptive_max_pool2d"):
            _first_of_pair(node, name)
        elif name == "narrow" and isinstance(node.args[2], int):
            _narrow_as_slice(node)
        elif name == "index":
            _constant_index(module, node)
        elif name == "mean":
            _mean_as_sum(node)
        elif node.target is aten.squeeze.default:
            _squeeze_named(node)
        elif name == "bilinear":
            _bilinear_as_product(node)
        elif name == "tensordot":
            _tensordot_as_product(node)
    for node in list(module.graph.nodes):
        if op_name(node) in OF_ANOTHER:
            _write_sizes(node)
    module.graph.eliminate_dead_code()
    for node in module.graph.nodes:
        _count_from_front(node)
    _merge_equal(module.graph)
    for node in module.graph.nodes:  # a gate is a module by its node's name
        if hasattr(nn.ModuleDict, node.name):
            node._rename(f"{node.name}_0")


def _merge_equal(graph: fx.Graph) -> None:
    """Let one node stand for all that compute the same, as torch's exporter does.

    A layer that is called twice on one tensor would be counted twice, and stand in the file once.
    """
    first: dict[tuple[Any, ...], fx.Node] = {}
    for node in list(graph.nodes):
        if node.op not in ("call_function", "get_attr"):
            continue
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            continue
        # As text 1, 1.0 and True are not equal; a node's is its name.
        key = (node.target, repr(node.args), repr(sorted(node.kwargs.items())))
        other = first.setdefault(key, node)
        if other is not node:
            node.replace_all_uses_with(other)
            graph.erase_node(node)


def _swap(node: fx.Node, target: Any, args: tuple[Any, ...]) -> fx.Node:
    with node.graph.inserting_before(node):
        new = _made(node.graph, target, args, node)
    node.replace_all_uses_with(new)
    node.graph.erase_node(node)
    return new


def _made(graph: fx.Graph, target: Any, args: tuple[Any, ...], like: fx.Node) -> fx.Node:
    new = graph.call_function(target, args)
    new.meta = {k: v for k, v in like.meta.items() if k != "val"}
    new.meta["val"] = target(*fx.node.map_arg(args, lambda x: x.meta["val"]))
    return new


def _squeeze_named(node: fx.Node) -> None:
    source = node.all_input_nodes[0]
    sizes = enumerate(source.meta["val"].shape)
    axes = [axis for axis, size in sizes if isinstance(size, int) and size == 1]
    _swap(node, aten.squeeze.dims, (source, axes))


def _drop_broadcast(node: fx.Node) -> None:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    shape = node.meta["val"].shape
    for user in node.users:
        others = [x for x in user.all_input_nodes if x is not node]
        if op_name(user) not in ELEMENTWISE or not any(
            isinstance(x.meta.get("val"), torch.Tensor) and x.meta["val"].shape == shape
            for x in others
        ):
            return
    node.replace_all_uses_with(source)
    node.graph.erase_node(node)


def _write_sizes(node: fx.Node) -> None:
    """Sizes of the images' own batch; those of another shape are left to be kept whole."""
    other = node.args[1]
    assert isinstance(other, fx.Node)
    image = next(n for n in node.graph.nodes if n.op == "placeholder")
    sizes: list[Any] = list(other.meta["val"].shape)
    if any(not isinstance(n, int) for n in sizes[1:]):
        return
    if sizes and not isinstance(sizes[0], int):
        if sizes[0] != image.meta["val"].shape[0]:
            return
        with node.graph.inserting_before(node):
            sizes[0] = _made(node.graph, aten.sym_size.int, (image, 0), node)
    _swap(node, getattr(aten, OF_ANOTHER[op_name(node)]).default, (node.args[0], sizes))


def _first_of_pair(node: fx.Node, name: str) -> None:
    """The values alone, where nobody asks for their places."""
    if not isinstance(node.meta["val"], tuple | list):
        return
    picks = list(node.users)
    if any(u.target is not operator.getitem or u.args[1] != 0 for u in picks):
        return
    source = node.args[0]
    assert isinstance(source, fx.Node)
    target: Any
    args: tuple[Any, ...]
    if name == "adaptive_max_pool2d":
        given: Any = node.args[1]
        size = list(given) if isinstance(given, list | tuple) else [given] * 2
        sides = [int(n) for n in source.meta["val"].shape[-2:]]
        if size == [1, 1]:
            target, args = aten.amax.default, (source, [2, 3], True)
        elif all(side % int(n) == 0 for side, n in zip(sides, size, strict=True)):
            steps = [side // int(n) for side, n in zip(sides, size, strict=True)]
            target, args = aten.max_pool2d.default, (source, steps, steps)
        else:
            return
    else:
        keep = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
        target = aten.amax.default if name == "max" else aten.amin.default
        args = (source, [node.args[1]], keep)
    with node.graph.inserting_before(node):
        new = _made(node.graph, target, args, node)
    for pick in picks:
        pick.replace_all_uses_with(new)
        node.graph.erase_node(pick)
    node.graph.erase_node(node)


def _narrow_as_slice(node: fx.Node) -> None:
    source, dim, start, length = node.args
    assert isinstance(source, fx.Node) and isinstance(dim, int) and isinstance(start, int)
    assert isinstance(length, int)
    if start < 0:
        start += int(source.meta["val"].shape[dim])
    _swap(node, aten.slice.Tensor, (source, dim, start, start + length))


def _count_from_front(node: fx.Node) -> None:
    """Axis -3 of a map is its axis 1: who asks whether an axis is the channels' need not know both.

    What has several tensors may count the axes of another one than its first.
    """
    schema = getattr(node.target, "_schema", None)
    if schema is None or [str(x.type) for x in schema.arguments].count("Tensor") != 1:
        return
    place = next((i for i, x in enumerate(schema.arguments) if x.name == "dim"), None)
    source = node.args[0] if node.args else None
    if place is None or not isinstance(source, fx.Node):
        return
    rank = source.meta["val"].dim() + (op_name(node) == "unsqueeze")
    given = node.args[place] if place < len(node.args) else node.kwargs.get("dim")
    if not isinstance(given, int) or given >= 0 or not rank:
        return
    if place < len(node.args):
        node.update_arg(place, given + rank)
    else:
        node.update_kwarg("dim", given + rank)


def _constant_index(module: fx.GraphModule, node: fx.Node) -> None:
    places = node.args[1]
    assert isinstance(places, list | tuple)
    given = [(dim, x) for dim, x in enumerate(places) if x is not None]
    if len(given) != 1 or getattr(given[0][1], "op", "") != "get_attr" or given[0][0] == 0:
        return
    (dim, index) = given[0]
    value = operator.attrgetter(str(index.target))(module)
    if value.dtype == torch.int64 and value.dim() == 1 and bool((value >= 0).all()):
        _swap(node, aten.index_select.default, (node.args[0], dim, index))


def _mean_as_sum(node: fx.Node) -> None:
    source, dims = node.args[0], node.args[1] if len(node.args) > 1 else None
    assert isinstance(source, fx.Node)
    shape = source.meta["val"].shape
    dims = dims if isinstance(dims, list | tuple) else [dims]
    if None in dims or node.kwargs.get("dtype") is not None:
        return
    places = {int(d) % len(shape) for d in dims}  # type: ignore[arg-type]
    if 0 in places or not (1 in places or (len(shape) == 4 and places == {3})):
        return
    count = 1
    for place in places:
        count *= int(shape[place])
    keep = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
    with node.graph.inserting_before(node):
        total = _made(node.graph, aten.sum.dim_IntList, (source, sorted(places), keep), node)
    _swap(node, aten.mul.Tensor, (total, 1.0 / count))


def _bilinear_as_product(node: fx.Node) -> None:
    """`[N, ..., O]` from `[N, ..., I]` and `[N, ..., J]`, by a weight `[O, I, J]`.

    torch's exporter would keep the weight in another order, under another name.
    """
    first, second, weight, bias = (*node.args, None)[:4]
    with node.graph.inserting_before(node):
        rows = _made(node.graph, aten.unsqueeze.default, (first, -2), node)
        rows = _made(node.graph, aten.unsqueeze.default, (rows, -2), node)
        half = _made(node.graph, aten.matmul.default, (rows, weight), node)  # [N, ..., O, 1, J]
        half = _made(node.graph, aten.squeeze.dim, (half, -2), node)
        other = _made(node.graph, aten.unsqueeze.default, (second, -2), node)
        whole = _made(node.graph, aten.mul.Tensor, (half, other), node)
        total = _made(node.graph, aten.sum.dim_IntList, (whole, [-1]), node)
        if bias is not None:
            total = _made(node.graph, aten.add.Tensor, (total, bias), node)
    node.replace_all_uses_with(total)
    node.graph.erase_node(node)


def _tensordot_as_product(node: fx.Node) -> None:
    first, second, dims, others = node.args
    assert isinstance(first, fx.Node) and isinstance(second, fx.Node)
    last = first.meta["val"].dim() - 1
    if dims in ([last], [-1]) and others == [0] and second.meta["val"].dim() == 2:
        _swap(node, aten.matmul.default, (first, second))
