"""How channel slots pass through operations that mix or tie channels.

Each handler returns the slots of its node's output, and notes in the flow what it reads, which
axes of its parameters its channels lie along, and what it costs.
"""

from __future__ import annotations

import torch
from torch import fx

from prunion.runtime.errors import UnsupportedGraphError
from prunion.trainer.channels.slots import (
    ActivationSlots,
    Flow,
    Read,
    arg_of,
    channel_ids,
    name_of,
    per_channel,
    read,
    shape_of,
    spread,
    weight_shape,
)

__all__ = ["add", "batch_norm", "conv", "linear", "mul", "read_features"]


def conv(flow: Flow, node: fx.Node) -> ActivationSlots:
    """Its outputs are new units; a depthwise one's outputs live with their inputs."""
    source, weight, bias = node.args[0], name_of(node, 1), name_of(node, 2)
    groups = arg_of(node, 6, 1)
    assert isinstance(source, fx.Node) and weight is not None
    outputs, per_group = weight_shape(node, 1)[:2]
    inputs = channel_ids(flow, node, source)
    out = flow.sets.fresh(outputs)
    if groups == 1:
        read(flow, node, source)
        flow.lay(weight, 1, inputs)
    elif per_group == 1:  # depthwise: an output lives with the input it is made of
        flow.sets.tie(out, inputs.repeat_interleave(outputs // groups))
    else:  # the same position in every group is one unit
        read(flow, node, source)
        for ids in (inputs.view(groups, -1), out.view(groups, -1)):
            flow.sets.tie(ids, ids[:1].expand_as(ids))
        flow.lay(weight, 1, inputs[:per_group])
    flow.lay(weight, 0, out)
    if bias is not None:
        flow.lay(bias, 0, out)
    shape = shape_of(node)
    flow.layers.append((weight, weight_shape(node, 1), shape[2] * shape[3]))
    zero = flow.values[source].zero if groups > 1 and per_group == 1 and bias is None else None
    channel_zero = torch.zeros(outputs, dtype=torch.bool)
    if zero is not None:
        channel_zero = per_channel(zero).repeat_interleave(outputs // groups)
    return spread(out, channel_zero, shape)


def linear(flow: Flow, node: fx.Node) -> ActivationSlots:
    """Its outputs are new units; its inputs must be the channels, on the last axis."""
    source, weight, bias = node.args[0], name_of(node, 1), name_of(node, 2)
    assert isinstance(source, fx.Node) and weight is not None
    value = flow.values[source]
    features = value.ids.shape[-1]
    ids = value.ids.reshape(-1, features)
    if not (ids == ids[:1]).all():
        raise UnsupportedGraphError(
            f"node {node.name}: the channels of its input are not on the last axis"
        )
    read(flow, node, source)
    out = flow.sets.fresh(weight_shape(node, 1)[0])
    flow.lay(weight, 0, out)
    flow.lay(weight, 1, ids[0])
    if bias is not None:
        flow.lay(bias, 0, out)
    shape = shape_of(node)
    positions = int(torch.Size(shape[1:-1]).numel())
    flow.layers.append((weight, weight_shape(node, 1), positions))
    return ActivationSlots(out.expand(shape), torch.zeros(1, dtype=torch.bool).expand(shape))


def batch_norm(flow: Flow, node: fx.Node) -> ActivationSlots:
    """Its parameters are laid out by its channels; behind it an off channel can be 0."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    ids = channel_ids(flow, node, source)
    for position in (1, 2, 3, 4):
        name = name_of(node, position)
        if name is not None:
            flow.lay(name, 0, ids)
    flow.norms.append(node)
    return spread(ids, torch.ones(len(ids), dtype=torch.bool), shape_of(node))


def add(flow: Flow, node: fx.Node) -> ActivationSlots:
    """Both sides become the same units; the sum is 0 where both are."""
    tensors, other = _operands(flow, node)
    if len(tensors) == 2:
        ids, (zero_a, zero_b) = _tied(flow, *tensors)
        return ActivationSlots(ids, zero_a & zero_b)
    return ActivationSlots(tensors[0].ids, tensors[0].zero & (other == 0))


def mul(flow: Flow, node: fx.Node) -> ActivationSlots:
    """Both sides become the same units; the product is 0 where either is."""
    tensors, other = _operands(flow, node)
    if len(tensors) == 2:
        ids, (zero_a, zero_b) = _tied(flow, *tensors)
        return ActivationSlots(ids, zero_a | zero_b)
    if other == 0:  # how some shortcuts make zero channels: nothing ties them to their source
        count = tensors[0].ids.shape[1]
        return spread(flow.sets.fresh(count), torch.ones(count, dtype=torch.bool), shape_of(node))
    return tensors[0]


def _operands(flow: Flow, node: fx.Node) -> tuple[list[ActivationSlots], float | None]:
    """The activations among two operands, and the number; None where that is a parameter."""
    tensors: list[ActivationSlots] = []
    other: float | None = None
    for arg in node.args[:2]:
        if isinstance(arg, fx.Node) and arg.op == "get_attr":
            _lay_parameter(flow, node, arg)
        elif isinstance(arg, fx.Node):
            tensors.append(flow.values[arg])
        else:
            other = float(arg)  # type: ignore[arg-type]
    return tensors, other


def _lay_parameter(flow: Flow, node: fx.Node, parameter: fx.Node) -> None:
    """A scale or offset of the other operand's channels, `[C, 1, 1]` or `[1, C, 1, 1]`."""
    source = next(x for x in node.all_input_nodes if x.op != "get_attr")
    shape, rank = parameter.meta["val"].shape, flow.values[source].ids.dim()
    axis = 1 - (rank - len(shape))
    if rank > 4 or len(shape) > rank or (axis == 1 and shape[0] != 1):
        raise UnsupportedGraphError(
            f"node {node.name}: {parameter.target} {list(shape)} is no scale or shift of channels"
        )
    if axis >= 0 and shape[axis] > 1:
        ids = channel_ids(flow, node, source)
        if len(ids) != shape[axis]:
            raise UnsupportedGraphError(
                f"node {node.name}: {parameter.target} makes {shape[axis]} channels of {len(ids)}"
            )
        flow.lay(str(parameter.target), axis, ids)


def _tied(
    flow: Flow, a: ActivationSlots, b: ActivationSlots
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """Two operands broadcast and tied element by element: their ids, and both zero flags."""
    ids_a, ids_b = torch.broadcast_tensors(a.ids, b.ids)
    zero_a, zero_b = torch.broadcast_tensors(a.zero, b.zero)
    flow.sets.tie(ids_a, ids_b)
    return ids_a, (zero_a, zero_b)


def read_features(flow: Flow, node: fx.Node) -> None:
    """The end of the graph: the heads read its features."""
    source = node.args[0]
    if not isinstance(source, fx.Node) or flow.values[source].ids.dim() != 2:
        raise UnsupportedGraphError("the backbone must end in one feature vector [N, F]")
    value = flow.values[source]
    flow.lay("head_weight", 1, value.ids[0])
    flow.reads.append(Read(node, source, value.ids, value.zero))
