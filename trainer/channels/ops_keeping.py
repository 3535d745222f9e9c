"""How channel slots pass through operations that keep channels apart.

Each handler returns the slots of its node's output. Layout operations (reshape, transpose, split
and the like) are simply run on the ids themselves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from prunion.runtime.errors import UnsupportedGraphError
from prunion.trainer.backbone import op_name
from prunion.trainer.channels.slots import (
    ActivationSlots,
    Flow,
    arg_of,
    channel_ids,
    fixed,
    per_channel,
    read,
    shape_of,
    spread,
    tensor_of,
    value_of,
    varying,
)

__all__ = [
    "activation_off_zero",
    "cat",
    "clamp",
    "elementwise",
    "glu",
    "layout",
    "pad",
    "pool",
    "power",
    "reduce",
    "softmax",
    "stack",
    "threshold",
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
    value, name = value_of(flow, node), op_name(node)
    first, second = arg_of(node, 1, None), arg_of(node, 2, None) if name != "clamp_max" else None
    if name == "hardtanh":
        first, second = arg_of(node, 1, -1.0), arg_of(node, 2, 1.0)
    low, high = (None, first) if name == "clamp_max" else (first, second)
    if isinstance(low, fx.Node) or isinstance(high, fx.Node):
        raise UnsupportedGraphError(
            f"node {node.name}: a bound of it is a tensor: torch.maximum and torch.minimum are "
            "followed"
        )
    keeps = (low is None or low <= 0) and (high is None or high >= 0)
    return ActivationSlots(value.ids, value.zero & keeps)


def threshold(flow: Flow, node: fx.Node) -> ActivationSlots:
    """What is not over a bound becomes one value."""
    value, bound, other = value_of(flow, node), arg_of(node, 1, 0), arg_of(node, 2, 0)
    return ActivationSlots(value.ids, value.zero & (other == 0 or bound < 0))


def power(flow: Flow, node: fx.Node) -> ActivationSlots:
    """A constant power of at least 1: its slope at 0 is finite."""
    exponent = arg_of(node, 1, None)
    if isinstance(exponent, fx.Node) or exponent < 1:
        raise UnsupportedGraphError(f"node {node.name}: a power that is computed, or below 1")
    return value_of(flow, node)


def softmax(flow: Flow, node: fx.Node) -> ActivationSlots:
    """Over positions each channel for itself; a channel that is off is no longer 0."""
    value, differ = value_of(flow, node), varying(value_of(flow, node).ids)
    dim = int(arg_of(node, 1, -1)) % value.ids.dim()
    if differ == [dim]:
        raise UnsupportedGraphError(f"node {node.name}: it weighs channels against each other")
    if dim in differ:  # several tensors side by side: channel by channel they become one
        flow.sets.tie(value.ids, value.ids.narrow(dim, 0, 1).expand_as(value.ids))
    return activation_off_zero(flow, node)


def pool(flow: Flow, node: fx.Node) -> Any:
    """Positions are pooled or interpolated; a channel stays a channel."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    sides = next((n for n in (1, 2, 3) if f"{n}d" in op_name(node)), 2)
    if flow.values[source].ids.dim() != sides + 2:
        raise UnsupportedGraphError(f"node {node.name}: its input is not [N, C] and {sides} axes")
    ids, zero = channel_ids(flow, node, source), per_channel(flow.values[source].zero)
    made = node.meta["val"]
    if isinstance(made, torch.Tensor):
        return spread(ids, zero, shape_of(node))
    shapes = [(1, *(int(n) for n in x.shape[1:])) for x in made]  # the second holds places
    return tuple(spread(ids, zero & (i == 0), shape) for i, shape in enumerate(shapes))


def reduce(flow: Flow, node: fx.Node) -> ActivationSlots:
    """A mean, sum or maximum over positions; also a sum over channels, of which off ones are 0."""
    value, dims, keep = value_of(flow, node), arg_of(node, 1, None), bool(arg_of(node, 2, False))
    rank = value.ids.dim()
    given = dims if isinstance(dims, list | tuple) else [] if dims is None else [dims]
    where = {d % rank for d in given}
    if not where or 0 in where:
        raise UnsupportedGraphError(f"node {node.name}: {op_name(node)} over everything")
    ids, zero, differ = value.ids, value.zero, varying(value.ids)
    over_channels = len(differ) == 1 and differ[0] in where
    if over_channels and op_name(node) == "sum":
        source = node.args[0]
        assert isinstance(source, fx.Node)
        read(flow, node, source)
        return fixed(shape_of(node))
    if over_channels:
        raise UnsupportedGraphError(f"node {node.name}: {op_name(node)} over channels")
    for dim in sorted(where, reverse=True):
        first = ids.narrow(dim, 0, 1)
        if dim in differ:  # several tensors side by side: channel by channel they become one
            flow.sets.tie(ids, first.expand_as(ids))
        ids, zero = first, zero.all(dim, keepdim=True)
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
    first = 2 * (flow.values[source].ids.dim() - 2)  # pairs count from the last axis
    channels = first == 4 and mode == "constant" and not fill  # of a map [N, C, H, W]
    before, after = (*amounts[first : first + 2], 0, 0)[:2]
    if min(amounts) < 0 or any(amounts[first + 2 :]) or (before + after and not channels):
        raise UnsupportedGraphError(f"node {node.name}: only zero channels can be padded")
    ids = torch.cat([flow.sets.fresh(before), ids, flow.sets.fresh(after)])
    always = torch.ones(1, dtype=torch.bool)
    off_zero = torch.cat([always.expand(before), off_zero, always.expand(after)])
    return spread(ids, off_zero, shape_of(node))


def cat(flow: Flow, node: fx.Node) -> ActivationSlots:
    """Tensors one behind the other: so are their slots.

    Where they do not stand one behind the other along their channels, each channel of one lives
    with the same channel of the others.
    """
    parts, dim = _parts(flow, node), int(arg_of(node, 1, 0))
    dim %= parts[0].ids.dim()
    if dim == 0:
        raise UnsupportedGraphError(f"node {node.name}: it joins batches")
    differ = {axis for part in parts for axis in varying(part.ids)}
    if differ and dim not in differ:
        first = parts[0].ids.narrow(dim, 0, 1)
        for part in parts:
            flow.sets.tie(part.ids, first.expand_as(part.ids))
        if any(not varying(part.ids) for part in parts):
            flow.whole[node] = "it joins them with channels that are never removed"
    return ActivationSlots(
        torch.cat([p.ids for p in parts], dim), torch.cat([p.zero for p in parts], dim)
    )


def stack(flow: Flow, node: fx.Node) -> ActivationSlots:
    """Tensors side by side along a new axis: their channels live together."""
    parts, dim = _parts(flow, node), int(arg_of(node, 1, 0))
    dim %= parts[0].ids.dim() + 1
    if dim == 0:
        raise UnsupportedGraphError(f"node {node.name}: it makes a new first axis")
    for part in parts[1:]:
        flow.sets.tie(part.ids, parts[0].ids)
    return ActivationSlots(
        torch.stack([parts[0].ids for _ in parts], dim), torch.stack([p.zero for p in parts], dim)
    )


def glu(flow: Flow, node: fx.Node) -> ActivationSlots:
    """One half times the sigmoid of the other: both halves live together."""
    value = value_of(flow, node)
    dim = int(arg_of(node, 1, -1))
    (a, b), (zero, _) = value.ids.chunk(2, dim), value.zero.chunk(2, dim)
    flow.sets.tie(a, b)
    return ActivationSlots(a, zero)


def layout(flow: Flow, node: fx.Node) -> Any:
    """The operation itself, run on the ids and flags instead of the activation."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    value = flow.values[source]

    def run(pick: str) -> Any:
        def of(x: fx.Node) -> Any:
            if x.op == "get_attr":
                return tensor_of(flow, x)
            held = flow.values[x]
            return getattr(held, pick) if isinstance(held, ActivationSlots) else held

        target: Any = node.target
        first = value if isinstance(value, tuple) else getattr(value, pick).contiguous()
        rest = fx.node.map_arg(node.args[1:], of)
        return target(first, *rest, **fx.node.map_arg(dict(node.kwargs), of))

    ids = run("ids")
    if isinstance(value, tuple):
        return ids
    zero = run("zero")
    if isinstance(ids, torch.Tensor):
        return ActivationSlots(ids, zero)
    return tuple(ActivationSlots(i, z) for i, z in zip(ids, zero, strict=True))


def _parts(flow: Flow, node: fx.Node) -> list[ActivationSlots]:
    tensors = node.args[0]
    assert isinstance(tensors, list | tuple)
    parts = []
    for tensor in tensors:
        assert isinstance(tensor, fx.Node)
        if tensor not in flow.values:
            raise UnsupportedGraphError(f"node {node.name}: it joins {tensor.target}, a parameter")
        parts.append(flow.values[tensor])
    return parts
