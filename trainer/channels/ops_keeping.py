"""How channel slots pass through operations that keep channels apart.

Each handler returns the slots of its node's output. Layout operations (reshape, transpose, split
and the like) are simply run on the ids themselves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from prunion.runtime.errors import UnsupportedGraphError
from prunion.trainer.channels.slots import (
    ActivationSlots,
    Flow,
    arg_of,
    channel_ids,
    per_channel,
    shape_of,
    spread,
    value_of,
)

__all__ = [
    "activation_off_zero",
    "cat",
    "clamp",
    "elementwise",
    "layout",
    "mean",
    "pad",
    "pool",
    "scale",
]


def elementwise(flow: Flow, node: fx.Node) -> ActivationSlots:
    """Each element for itself, f(0) = 0: nothing changes."""
    return value_of(flow, node)


def activation_off_zero(flow: Flow, node: fx.Node) -> ActivationSlots:
    """Each element for itself, f(0) ≠ 0: a channel that is off is no longer 0."""
    value = value_of(flow, node)
    return ActivationSlots(value.ids, torch.zeros_like(value.zero))


def clamp(flow: Flow, node: fx.Node) -> ActivationSlots:
    """Keeps an off channel at 0 where 0 lies between the bounds."""
    value = value_of(flow, node)
    low, high = arg_of(node, 1, None), arg_of(node, 2, None)
    keeps = (low is None or low <= 0) and (high is None or high >= 0)
    return ActivationSlots(value.ids, value.zero & keeps)


def scale(flow: Flow, node: fx.Node) -> ActivationSlots:
    """Division by a number."""
    if isinstance(node.args[1], fx.Node):
        raise UnsupportedGraphError(f"node {node.name}: division by a tensor of channels")
    return value_of(flow, node)


def pool(flow: Flow, node: fx.Node) -> ActivationSlots:
    """Positions are pooled or interpolated; a channel stays a channel."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    ids = channel_ids(flow, node, source)
    return spread(ids, per_channel(flow.values[source].zero), shape_of(node))


def mean(flow: Flow, node: fx.Node) -> ActivationSlots:
    """A mean over positions; over channels it is refused."""
    value, dims, keep = value_of(flow, node), arg_of(node, 1, None), bool(arg_of(node, 2, False))
    rank = value.ids.dim()
    where = (
        {d % rank for d in (dims if isinstance(dims, list | tuple) else [dims])} if dims else {1}
    )
    if not where <= set(range(2, rank)):
        raise UnsupportedGraphError(f"node {node.name}: a mean over channels ties all of them")
    ids, zero = value.ids, value.zero
    for dim in sorted(where, reverse=True):
        ids, zero = ids.narrow(dim, 0, 1), zero.all(dim, keepdim=True)
        if not keep:
            ids, zero = ids.squeeze(dim), zero.squeeze(dim)
    return ActivationSlots(ids, zero)


def pad(flow: Flow, node: fx.Node) -> ActivationSlots:
    """Padded positions belong to their channel; padded channels are new units, always 0."""
    source = node.args[0]
    amounts, mode, fill = arg_of(node, 1, []), arg_of(node, 2, "constant"), arg_of(node, 3, None)
    assert isinstance(source, fx.Node)
    ids, off_zero = channel_ids(flow, node, source), per_channel(flow.values[source].zero)
    off_zero = off_zero & (mode != "constant" or not fill)
    before, after = (*amounts[4:6], 0, 0)[:2]
    if min(amounts) < 0 or any(amounts[6:]) or (before + after and (mode != "constant" or fill)):
        raise UnsupportedGraphError(f"node {node.name}: only zero channels can be padded")
    ids = torch.cat([flow.sets.fresh(before), ids, flow.sets.fresh(after)])
    always = torch.ones(1, dtype=torch.bool)
    off_zero = torch.cat([always.expand(before), off_zero, always.expand(after)])
    return spread(ids, off_zero, shape_of(node))


def cat(flow: Flow, node: fx.Node) -> ActivationSlots:
    """Tensors one behind the other: so are their slots."""
    tensors, parts = node.args[0], []
    assert isinstance(tensors, list | tuple)
    for tensor in tensors:
        assert isinstance(tensor, fx.Node)
        parts.append(flow.values[tensor])
    dim = arg_of(node, 1, 0)
    return ActivationSlots(
        torch.cat([p.ids for p in parts], dim), torch.cat([p.zero for p in parts], dim)
    )


def layout(flow: Flow, node: fx.Node) -> Any:
    """The operation itself, run on the ids and flags instead of the activation."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    rest = fx.node.map_arg(node.args[1:], lambda n: flow.values[n])
    kwargs = fx.node.map_arg(dict(node.kwargs), lambda n: flow.values[n])
    target: Any = node.target
    value = flow.values[source]
    if isinstance(value, tuple):
        return target(value, *rest, **kwargs)
    ids = target(value.ids.contiguous(), *rest, **kwargs)
    zero = target(value.zero.contiguous(), *rest, **kwargs)
    if isinstance(ids, torch.Tensor):
        return ActivationSlots(ids, zero)
    return tuple(ActivationSlots(i, z) for i, z in zip(ids, zero, strict=True))
