"""A write into a part of a tensor as a tensor of its own: what is before it, it, and the rest."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from prunion.trainer.backbone.names import op_name

__all__ = ["NO_GRAD", "part_of", "with_part", "written"]

NO_GRAD = "within_a_region"  # in the meta of what stands in a `with`, such as torch.no_grad()
aten = torch.ops.aten


@dataclass(frozen=True)
class _Part:
    """`view` is `tensor[..., start:end, ...]` along `dim`, or all of it where the end is None.

    A `single` place has no axis of its own.
    """

    view: fx.Node
    tensor: fx.Node
    dim: int
    start: int
    end: int | None
    single: bool


def part_of(write: fx.Node) -> list[_Part]:
    """The parts of parts that are written into, the innermost first; empty if it is not known.

    Along the batch, or with steps between, it is not known. Nor where gradients are off: what is
    written there learns as if it were not.
    """
    chain, node = list[_Part](), write.args[0]
    assert isinstance(node, fx.Node)
    if NO_GRAD in write.meta:
        return []
    while (part := _part(node)) is not None:
        chain.append(part)
        node = part.tensor
    # What the module itself holds would be written to for good.
    return [] if node.op == "get_attr" else chain


def _part(node: fx.Node) -> _Part | None:
    name, args = op_name(node), node.args
    if node.op != "call_function" or name not in ("slice", "select") or node.kwargs:
        return None
    tensor, dim, first = (*args, 0, None)[:3] if name == "slice" else args
    if not isinstance(tensor, fx.Node) or not isinstance(dim, int):
        return None
    shape = tensor.meta["val"].shape
    dim += len(shape) if dim < 0 else 0
    size = shape[dim]
    last, step = (*args, *(None,) * 5)[3:5]
    every = first in (None, 0) and last in (None, sys.maxsize) and step in (None, 1)
    if name == "slice" and every:
        return _Part(node, tensor, dim, 0, None, False)
    if not isinstance(size, int):  # some of the batch
        return None
    if name == "select":
        if not isinstance(first, int):
            return None
        start = first + size * (first < 0)
        return _Part(node, tensor, dim, start, start + 1, True)
    if step not in (None, 1) or any(not isinstance(x, int | None) for x in (first, last)):
        return None
    start, end, _ = slice(first, last).indices(size)
    return _Part(node, tensor, dim, start, max(start, end), False)


def written(node: fx.Node) -> fx.Node | None:
    """Right behind a write, what it leaves, where channels are followed through another operation.

    None where its own does without writing.
    """
    target, name = node.args[0], op_name(node)
    assert isinstance(target, fx.Node)
    if name == "copy_":
        source = node.args[1]
        if not isinstance(source, fx.Node):
            return None
        have, want = source.meta["val"], target.meta["val"]
        if have.dtype != want.dtype:
            node = source = _made(node, aten.to.dtype, (source, want.dtype))
        if have.shape == want.shape:
            return _made(node, aten.clone.default, (source,))  # a later write to it reaches no copy
        return _made(node, aten.expand_as.default, (source, target))
    if name in ("zero_", "fill_"):
        value = 0.0 if name == "zero_" else node.args[1]
        if not isinstance(value, int | float) or not target.meta["val"].is_floating_point():
            return None
        zero = _made(node, aten.mul.Tensor, (target, 0.0))
        return zero if value == 0 else _made(zero, aten.add.Tensor, (zero, value))
    return None


def with_part(chain: list[_Part], value: fx.Node) -> list[tuple[fx.Node, fx.Node]]:
    """Behind `value`, the tensor of a chain with it in the part's place, and its parts anew.

    Each beside what it stands for, the innermost part last.
    """
    after = value
    for part in chain:
        size = part.tensor.meta["val"].shape[part.dim]
        if part.single:
            value = after = _made(after, aten.unsqueeze.default, (value, part.dim))
        pieces = [value]
        if part.start > 0:
            after = _made(after, aten.slice.Tensor, (part.tensor, part.dim, 0, part.start))
            pieces.insert(0, after)
        if part.end is not None and part.end < size:
            after = _made(after, aten.slice.Tensor, (part.tensor, part.dim, part.end, size))
            pieces.append(after)
        if len(pieces) > 1:
            value = after = _made(after, aten.cat.default, (pieces, part.dim))
    made = [(chain[-1].tensor, value)]
    for part in reversed(chain):
        after = _made(after, part.view.target, (made[-1][1], *part.view.args[1:]))
        made.append((part.view, after))
    return made


def _made(after: fx.Node, target: Any, args: tuple[Any, ...]) -> fx.Node:
    with after.graph.inserting_after(after):
        new = after.graph.call_function(target, args)
    new.meta = {k: v for k, v in after.meta.items() if k != "val"}
    new.meta["val"] = target(*fx.node.map_arg(args, lambda x: x.meta["val"]))
    return new
