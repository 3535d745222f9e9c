"""How channel slots flow through each operation of a traced graph.

Every activation carries two small tensors of its own shape with a batch of one: the *slot id* of
each element, and whether that element is exactly zero when its slot is switched off. Layout
operations (reshape, transpose, concat, split, …) are simply run on both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from prunion.runtime.errors import UnsupportedGraphError
from prunion.trainer.slot_sets import FIXED, SlotSets
from prunion.trainer.trace import op_name

__all__ = ["Flow", "Read", "Slots", "flow_slots"]

KEEPS_ZERO = frozenset(
    "relu relu6 hardtanh silu hardswish gelu leaky_relu elu celu selu mish tanh prelu "
    "clamp_min clone contiguous to _to_copy alias neg abs".split()
)
BREAKS_ZERO = frozenset("sigmoid hardsigmoid softplus exp log_sigmoid cos".split())
LAYOUT = frozenset(
    "view reshape _unsafe_view flatten permute transpose unsqueeze squeeze expand "
    "split split_with_sizes chunk slice select unbind getitem".split()
)
POOLS = frozenset(
    "max_pool2d avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d "
    "upsample_nearest2d upsample_bilinear2d".split()
)


@dataclass(frozen=True)
class Slots:
    """What one activation carries.

    Attributes:
        ids: slot id of every element, `[1, C, ...]` int64.
        zero: is the element exactly 0 when its slot is off, same shape, bool.
    """

    ids: torch.Tensor
    zero: torch.Tensor


@dataclass(frozen=True)
class Read:
    """`node` mixes the channels of its input `source`: those that are off must be zero there."""

    node: fx.Node
    source: fx.Node
    ids: torch.Tensor
    zero: torch.Tensor


@dataclass(frozen=True)
class Flow:
    """Everything the walk over a graph found out.

    Attributes:
        values: `Slots` of every activation (a tuple of them for a split, an int for a size).
        weights: slot ids along an axis of a parameter or buffer.
        layers: weight, shape and output positions of each convolution and linear layer.
    """

    sets: SlotSets
    values: dict[fx.Node, Any]
    weights: dict[tuple[str, int], torch.Tensor]
    reads: list[Read]
    layers: list[tuple[str, tuple[int, ...], int]]
    norms: list[fx.Node]

    def lay(self, tensor: str, axis: int, ids: torch.Tensor) -> None:
        """Say that `axis` of `tensor` is laid out by `ids`; a second use ties both."""
        known = self.weights.setdefault((tensor, axis), ids)
        self.sets.tie(known, ids)


def flow_slots(module: fx.GraphModule) -> Flow:
    """Walk a traced graph once and tie together the slots that must live or die together.

    Raises:
        UnsupportedGraphError: an operation whose channels cannot be decided, naming its node.
    """
    flow = Flow(SlotSets(), {}, {}, [], [], [])
    for node in module.graph.nodes:
        if node.op == "placeholder":
            flow.values[node] = _fixed(_shape(node))
        elif node.op == "get_attr":
            continue
        elif node.op == "output":
            _read_features(flow, node)
        elif op_name(node) == "sym_size":
            flow.values[node] = 1 if node.args[1] == 0 else int(node.meta["val"])
        else:
            handler = _handler(node)
            flow.values[node] = handler(flow, node)
    return flow


def _handler(node: fx.Node) -> Callable[[Flow, fx.Node], Any]:
    name = op_name(node)
    if name in KEEPS_ZERO:
        return _elementwise
    if name in BREAKS_ZERO:
        return _activation_off_zero
    if name in LAYOUT:
        return _layout
    if name in POOLS:
        return _pool
    handlers: dict[str, Callable[[Flow, fx.Node], Any]] = {
        "add": _add,
        "avg_pool1d": _pool,
        "batch_norm": _batch_norm,
        "cat": _cat,
        "clamp": _clamp,
        "conv2d": _conv,
        "div": _scale,
        "linear": _linear,
        "mean": _mean,
        "mul": _mul,
        "pad": _pad,
        "sub": _add,
    }
    if name not in handlers:
        raise UnsupportedGraphError(
            f"node {node.name}: prunion does not know how channels pass through {name or node.op}; "
            "cut the backbone before it ([backbone] cut) or choose another backbone"
        )
    return handlers[name]


# --- operations that mix channels -----------------------------------------------------------


def _conv(flow: Flow, node: fx.Node) -> Slots:
    source, weight, bias, groups = node.args[0], _name(node, 1), _name(node, 2), _arg(node, 6, 1)
    assert isinstance(source, fx.Node) and weight is not None
    outputs, per_group = _weight_shape(node, 1)[:2]
    inputs = _channel_ids(flow, node, source)
    out = flow.sets.fresh(outputs)
    if groups == 1:
        _read(flow, node, source)
        flow.lay(weight, 1, inputs)
    elif per_group == 1:  # depthwise: an output lives with the input it is made of
        flow.sets.tie(out, inputs.repeat_interleave(outputs // groups))
    else:  # the same position in every group is one unit
        _read(flow, node, source)
        for ids in (inputs.view(groups, -1), out.view(groups, -1)):
            flow.sets.tie(ids, ids[:1].expand_as(ids))
        flow.lay(weight, 1, inputs[:per_group])
    flow.lay(weight, 0, out)
    if bias is not None:
        flow.lay(bias, 0, out)
    shape = _shape(node)
    flow.layers.append((weight, _weight_shape(node, 1), shape[2] * shape[3]))
    zero = flow.values[source].zero if groups > 1 and per_group == 1 and bias is None else None
    channel_zero = torch.zeros(outputs, dtype=torch.bool)
    if zero is not None:
        channel_zero = _per_channel(zero).repeat_interleave(outputs // groups)
    return _spread(out, channel_zero, shape)


def _linear(flow: Flow, node: fx.Node) -> Slots:
    source, weight, bias = node.args[0], _name(node, 1), _name(node, 2)
    assert isinstance(source, fx.Node) and weight is not None
    value = flow.values[source]
    features = value.ids.shape[-1]
    ids = value.ids.reshape(-1, features)
    if not (ids == ids[:1]).all():
        raise UnsupportedGraphError(
            f"node {node.name}: the channels of its input are not on the last axis"
        )
    _read(flow, node, source)
    out = flow.sets.fresh(_weight_shape(node, 1)[0])
    flow.lay(weight, 0, out)
    flow.lay(weight, 1, ids[0])
    if bias is not None:
        flow.lay(bias, 0, out)
    shape = _shape(node)
    positions = int(torch.Size(shape[1:-1]).numel())
    flow.layers.append((weight, _weight_shape(node, 1), positions))
    return Slots(out.expand(shape), torch.zeros(1, dtype=torch.bool).expand(shape))


def _batch_norm(flow: Flow, node: fx.Node) -> Slots:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    ids = _channel_ids(flow, node, source)
    for position in (1, 2, 3, 4):
        name = _name(node, position)
        if name is not None:
            flow.lay(name, 0, ids)
    flow.norms.append(node)
    return _spread(ids, torch.ones(len(ids), dtype=torch.bool), _shape(node))


def _add(flow: Flow, node: fx.Node) -> Slots:
    a, b = (_operand(flow, x) for x in node.args[:2])
    if isinstance(a, Slots) and isinstance(b, Slots):
        ids_a, ids_b = torch.broadcast_tensors(a.ids, b.ids)
        zero_a, zero_b = torch.broadcast_tensors(a.zero, b.zero)
        flow.sets.tie(ids_a, ids_b)
        return Slots(ids_a, zero_a & zero_b)
    tensor, number = (a, b) if isinstance(a, Slots) else (b, a)
    assert isinstance(tensor, Slots)
    return Slots(tensor.ids, tensor.zero & bool(number == 0))


def _mul(flow: Flow, node: fx.Node) -> Slots:
    a, b = (_operand(flow, x) for x in node.args[:2])
    if isinstance(a, Slots) and isinstance(b, Slots):
        ids_a, ids_b = torch.broadcast_tensors(a.ids, b.ids)
        zero_a, zero_b = torch.broadcast_tensors(a.zero, b.zero)
        flow.sets.tie(ids_a, ids_b)
        return Slots(ids_a, zero_a | zero_b)
    return a if isinstance(a, Slots) else b


# --- operations that keep channels apart ----------------------------------------------------


def _elementwise(flow: Flow, node: fx.Node) -> Slots:
    return _value(flow, node)


def _activation_off_zero(flow: Flow, node: fx.Node) -> Slots:
    value = _value(flow, node)
    return Slots(value.ids, torch.zeros_like(value.zero))


def _clamp(flow: Flow, node: fx.Node) -> Slots:
    value = _value(flow, node)
    low, high = _arg(node, 1, None), _arg(node, 2, None)
    keeps = (low is None or low <= 0) and (high is None or high >= 0)
    return Slots(value.ids, value.zero & keeps)


def _scale(flow: Flow, node: fx.Node) -> Slots:
    if isinstance(node.args[1], fx.Node):
        raise UnsupportedGraphError(f"node {node.name}: division by a tensor of channels")
    return _value(flow, node)


def _pool(flow: Flow, node: fx.Node) -> Slots:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    ids = _channel_ids(flow, node, source)
    return _spread(ids, _per_channel(flow.values[source].zero), _shape(node))


def _mean(flow: Flow, node: fx.Node) -> Slots:
    value, dims, keep = _value(flow, node), _arg(node, 1, None), bool(_arg(node, 2, False))
    rank = value.ids.dim()
    where = {d % rank for d in (dims if isinstance(dims, list | tuple) else [dims])} if dims else {1}
    if not where <= set(range(2, rank)):
        raise UnsupportedGraphError(f"node {node.name}: a mean over channels ties all of them")
    ids, zero = value.ids, value.zero
    for dim in sorted(where, reverse=True):
        ids, zero = ids.narrow(dim, 0, 1), zero.all(dim, keepdim=True)
        if not keep:
            ids, zero = ids.squeeze(dim), zero.squeeze(dim)
    return Slots(ids, zero)


def _pad(flow: Flow, node: fx.Node) -> Slots:
    source = node.args[0]
    amounts, mode, fill = list(node.args[1]), _arg(node, 2, "constant"), _arg(node, 3, None)  # type: ignore[arg-type]
    assert isinstance(source, fx.Node)
    if any(amounts[4:]):
        raise UnsupportedGraphError(
            f"node {node.name}: zero channels added by padding are not supported yet"
        )
    ids = _channel_ids(flow, node, source)
    zero = _per_channel(flow.values[source].zero)
    return _spread(ids, zero & (mode != "constant" or not fill), _shape(node))


def _cat(flow: Flow, node: fx.Node) -> Slots:
    parts = [flow.values[x] for x in node.args[0]]  # type: ignore[union-attr]
    dim = _arg(node, 1, 0)
    return Slots(torch.cat([p.ids for p in parts], dim), torch.cat([p.zero for p in parts], dim))


def _layout(flow: Flow, node: fx.Node) -> Any:
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
        return Slots(ids, zero)
    return tuple(Slots(i, z) for i, z in zip(ids, zero, strict=True))


# --- helpers --------------------------------------------------------------------------------


def _read_features(flow: Flow, node: fx.Node) -> None:
    source = node.args[0]
    if not isinstance(source, fx.Node) or flow.values[source].ids.dim() != 2:
        raise UnsupportedGraphError("the backbone must end in one feature vector [N, F]")
    value = flow.values[source]
    flow.lay("head_weight", 1, value.ids[0])
    flow.reads.append(Read(node, source, value.ids, value.zero))


def _read(flow: Flow, node: fx.Node, source: fx.Node) -> None:
    value = flow.values[source]
    flow.reads.append(Read(node, source, value.ids, value.zero))


def _value(flow: Flow, node: fx.Node) -> Slots:
    return flow.values[node.args[0]]  # type: ignore[index]


def _operand(flow: Flow, arg: Any) -> Slots | float:
    return flow.values[arg] if isinstance(arg, fx.Node) else arg


def _shape(node: fx.Node) -> tuple[int, ...]:
    return (1, *(int(n) for n in node.meta["val"].shape[1:]))


def _weight_shape(node: fx.Node, position: int) -> tuple[int, ...]:
    arg = node.args[position]
    assert isinstance(arg, fx.Node)
    return tuple(int(n) for n in arg.meta["val"].shape)


def _name(node: fx.Node, position: int) -> str | None:
    arg = _arg(node, position, None)
    return str(arg.target) if isinstance(arg, fx.Node) else None


def _arg(node: fx.Node, position: int, default: Any) -> Any:
    if position < len(node.args):
        return node.args[position]
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    return node.kwargs.get(schema[position].name, default)


def _channel_ids(flow: Flow, node: fx.Node, source: fx.Node) -> torch.Tensor:
    ids = flow.values[source].ids
    first = ids[:, :, *([0] * (ids.dim() - 2))] if ids.dim() > 2 else ids
    spread = first.reshape(1, -1, *([1] * (ids.dim() - 2)))
    if not (ids == spread).all():
        raise UnsupportedGraphError(
            f"node {node.name}: its input holds different channels at different positions"
        )
    return first[0]


def _per_channel(zero: torch.Tensor) -> torch.Tensor:
    return zero[0].reshape(zero.shape[1], -1).all(dim=1)


def _spread(ids: torch.Tensor, zero: torch.Tensor, shape: tuple[int, ...]) -> Slots:
    view = (1, -1, *([1] * (len(shape) - 2)))
    return Slots(ids.view(view).expand(shape), zero.view(view).expand(shape))


def _fixed(shape: tuple[int, ...]) -> Slots:
    ids = torch.full((1,), FIXED).expand(shape)
    return Slots(ids, torch.zeros(1, dtype=torch.bool).expand(shape))
