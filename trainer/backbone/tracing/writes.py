"""In-place operations become ordinary ones; what they write is lost to nobody, or refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from prunion.runtime.errors import UnsupportedGraphError
from prunion.trainer.backbone.names import is_in_place, op_name
from prunion.trainer.backbone.tracing.parts import part_of, with_part, written

__all__ = ["functionalise"]


@dataclass(frozen=True)
class _Place:
    """Where in memory a tensor lies: in which storage, and at which of its elements."""

    storage: int
    sizes: tuple[int, ...]
    steps: tuple[int, ...]
    first: int


Memory = tuple[_Place, ...]
Places = Mapping[fx.Node, Memory]


def functionalise(module: fx.GraphModule, example: torch.Tensor) -> None:
    """Turn `relu_` and its like into `relu`; later readers of the overwritten tensor follow.

    Those of a tensor of which a part is written into, `x[:, :4] = y`, read it put together anew.

    Raises UnsupportedGraphError for a write that would not reach all who read that memory later:
    those of a part of it, of a view of it, or of what it is a view of. By value this may not show:
    noise reaches no limit of `clamp_(max=6)`.
    """
    nodes = list(module.graph.nodes)
    writes = [node for node in nodes if is_in_place(node)]
    if not writes:
        return
    order = {node: position for position, node in enumerate(nodes)}
    places = _places(module, example)
    for node in writes:
        name = op_name(node)
        packet, overload = getattr(torch.ops.aten, name[:-1], None), node.target._overloadname
        if packet is None or not hasattr(packet, overload):
            raise UnsupportedGraphError(
                f"node {node.name}: in-place operation {name} is unknown: write it as one that "
                "computes a new tensor"
            )
        overwritten = node.args[0]
        assert isinstance(overwritten, fx.Node)
        later = {user for user in overwritten.users if order.get(user, -1) > order[node]}
        overwritten.replace_all_uses_with(node, delete_user_cb=later.__contains__)
        if any(_missed(node, overwritten, nodes, places)):
            _write_part(node, nodes, order, places)
        for held, reader in _missed(node, overwritten, nodes, places):
            raise UnsupportedGraphError(
                f"node {node.name}: {name} writes into a part of another tensor, {held.name}, "
                f"which {reader.name} reads later: compute a new tensor there (torch.where, "
                "torch.cat), or choose another backbone; `keep` cannot help here"
            )
    for node in writes:
        if op_name(node) == "copy_" and (value := written(node)) is not None:
            node.replace_all_uses_with(value)  # torch has no gradient of `copy`
        node.target = getattr(
            getattr(torch.ops.aten, op_name(node)[:-1]), node.target._overloadname
        )
    module.graph.eliminate_dead_code()


def _write_part(
    node: fx.Node, nodes: list[fx.Node], order: dict[fx.Node, int], places: dict[fx.Node, Memory]
) -> None:
    """Let those who read later what a write is into a part of read it with that part in place.

    Nothing where the part is not known. What is made stands in `nodes`, as if it were that memory.
    """
    if not (chain := part_of(node)):
        return
    *outer, (_, part) = with_part(chain, written(node) or node)
    followed = [*outer, (node, part)]  # which those of the part read by now
    for before, new in followed:
        later = {user for user in before.users if order.get(user, -1) > order[node]}
        before.replace_all_uses_with(new, delete_user_cb=later.__contains__)
        order[new], places[new] = order[node], places[before]
    at = nodes.index(node) + 1
    nodes[at:at] = [new for _, new in followed]


def _missed(
    node: fx.Node, overwritten: fx.Node, nodes: list[fx.Node], places: Places
) -> Iterator[tuple[fx.Node, fx.Node]]:
    """What holds memory that `node` overwrites and does not follow it, each with who reads it."""
    at = nodes.index(node)
    target = places[overwritten]
    old = {x for x in nodes[:at] if _meet(places[x], target)}
    for reader in nodes[at + 1 :]:
        read = [x for x in reader.all_input_nodes if x in old]
        if not read or (not places[reader] and reader.op != "output"):
            continue  # a size, which nobody can overwrite
        beside = is_in_place(reader) and set(read) - {reader.args[0]}  # what is written there
        if beside or not _shares(places[reader], target):
            yield read[0], reader
        elif _meet(places[reader], target):
            old.add(reader)  # a view of what is out of date, or a write into it


def _shares(some: Memory, others: Memory) -> bool:
    return bool({x.storage for x in some} & {x.storage for x in others})


def _meet(some: Memory, others: Memory) -> bool:
    """Whether any element of the one lies where one of the other does: not so two halves."""
    return any(x.storage == y.storage and _overlap(x, y) for x in some for y in others)


def _overlap(one: _Place, other: _Place) -> bool:
    if (one.sizes, one.steps, one.first) == (other.sizes, other.steps, other.first):
        return True
    if 0 in one.sizes or 0 in other.sizes:
        return False
    ends = [
        x.first + sum((n - 1) * s for n, s in zip(x.sizes, x.steps, strict=True))
        for x in (one, other)
    ]
    held = torch.zeros(max(ends) + 1, dtype=torch.bool)
    # What is expanded lies at the same elements many times, which no write may.
    sizes = [n if s else 1 for n, s in zip(one.sizes, one.steps, strict=True)]
    held.as_strided(sizes, one.steps, one.first).fill_(True)
    return bool(held.as_strided(other.sizes, other.steps, other.first).any())


def _places(module: fx.GraphModule, example: torch.Tensor) -> dict[fx.Node, Memory]:
    """Where every node's tensors lie, by running the graph without any memory."""
    found: dict[fx.Node, Memory] = {}
    # With a shape environment it can go on where a size depends on the data.
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())

    class Watched(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if n.op == "get_attr" and isinstance(value, torch.Tensor):
                value = mode.from_tensor(value, static_shapes=True)
            values = value if isinstance(value, tuple | list) else [value]
            found[n] = tuple(_place(x) for x in values if isinstance(x, torch.Tensor))
            return value

    with mode, torch.no_grad():
        Watched(module, garbage_collect_values=False).run(
            mode.from_tensor(example, static_shapes=True)
        )
    return found


def _place(value: torch.Tensor) -> _Place:
    return _Place(
        value.untyped_storage()._cdata,
        tuple(value.shape),
        value.stride(),
        int(value.storage_offset()),
    )
