"""How channel slots pass through operations that mix or tie channels.

Each handler returns the slots of its node's output, and notes in the flow what it reads and which
axes of its parameters its channels lie along.
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
    value_of,
    varying,
    weight_shape,
)

__all__ = [
    "UnsupportedBatch",
    "batch_norm",
    "conv",
    "group_norm",
    "instance_norm",
    "linear",
    "prelu",
    "read_features",
    "transposed_conv",
]


class UnsupportedBatch(UnsupportedGraphError):
    """An image's answer depends on the others in its batch: keeping channels cannot help."""


def conv(flow: Flow, node: fx.Node) -> ActivationSlots:
    """Its outputs are new units; a depthwise one's outputs live with their inputs."""
    source, weight, bias = node.args[0], name_of(node, 1), name_of(node, 2)
    groups = arg_of(node, 6, 1)
    assert isinstance(source, fx.Node) and weight is not None
    if not isinstance(groups, int):
        raise UnsupportedGraphError(f"node {node.name}: its number of groups is computed")
    outputs, per_group = weight_shape(node)[:2]
    inputs = channel_ids(flow, node, source)
    out = flow.sets.fresh(outputs)
    if groups == 1:
        read(flow, node, source)
        flow.lay(weight, 1, inputs)
    elif per_group == 1:  # depthwise: an output lives with the input it is made of
        flow.sets.tie(out, inputs.repeat_interleave(outputs // groups))
    else:  # the same position in every group is one unit
        read(flow, node, source)
        for ids in (inputs.reshape(groups, -1), out.view(groups, -1)):
            flow.sets.tie(ids, ids[:1].expand_as(ids))
        flow.lay(weight, 1, inputs[:per_group])
    flow.lay(weight, 0, out)
    if bias is not None:
        flow.lay(bias, 0, out)
    shape = shape_of(node)
    return _of_layer(flow, source, out, groups > 1 and per_group == 1 and bias is None, shape)


def transposed_conv(flow: Flow, node: fx.Node) -> ActivationSlots:
    """The same with its weight's axes the other way round, `[in, out / groups, *kernel]`."""
    source, weight, bias = node.args[0], name_of(node, 1), name_of(node, 2)
    groups = arg_of(node, 6, 1)
    assert isinstance(source, fx.Node) and weight is not None
    inputs, per_group = weight_shape(node)[:2]
    depthwise = groups == inputs and per_group == 1
    if groups > 1 and not depthwise:
        raise UnsupportedGraphError(f"node {node.name}: a transposed convolution in groups")
    given = channel_ids(flow, node, source)
    out = flow.sets.fresh(per_group * groups)
    if depthwise:
        flow.sets.tie(out, given)
    else:
        read(flow, node, source)
        flow.lay(weight, 1, out)
        flow.outputs[weight] = out
    flow.lay(weight, 0, given)
    if bias is not None:
        flow.lay(bias, 0, out)
    return _of_layer(flow, source, out, depthwise and bias is None, shape_of(node))


def _of_layer(
    flow: Flow, source: fx.Node, out: torch.Tensor, depthwise: bool, shape: tuple[int, ...]
) -> ActivationSlots:
    """A layer's outputs: nothing makes an off one 0 but an off input of a depthwise one."""
    zero = torch.zeros(len(out), dtype=torch.bool)
    if depthwise:
        given = per_channel(flow.values[source].zero)
        zero = given.repeat_interleave(len(out) // len(given))
    return spread(out, zero, shape)


def linear(flow: Flow, node: fx.Node) -> ActivationSlots:
    """Its outputs are new units; its inputs must be the channels, on the last axis."""
    source, weight, bias = node.args[0], name_of(node, 1), name_of(node, 2)
    assert isinstance(source, fx.Node) and weight is not None
    value = flow.values[source]
    last = value.ids.dim() - 1
    if set(varying(value.ids)) - {last}:
        raise UnsupportedGraphError(f"node {node.name}: its channels are not on the last axis")
    ids = value.ids.reshape(-1, value.ids.shape[-1])
    read(flow, node, source)
    out = flow.sets.fresh(weight_shape(node)[0])
    flow.lay(weight, 0, out)
    flow.lay(weight, 1, ids[0])
    if bias is not None:
        flow.lay(bias, 0, out)
    shape = shape_of(node)
    return ActivationSlots(out.expand(shape), torch.zeros(1, dtype=torch.bool).expand(shape))


def batch_norm(flow: Flow, node: fx.Node) -> ActivationSlots:
    """Its parameters are laid out by its channels; behind it an off channel can be 0."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    if name_of(node, 3) is None or arg_of(node, 5, False):
        raise UnsupportedBatch(
            f"node {node.name}: a BatchNorm without running statistics normalises by the batch, so "
            "an image's answer depends on the others: use track_running_stats=True"
        )
    ids = _lay_all(flow, node, (1, 2, 3, 4))
    flow.norms.append(node)
    return spread(ids, torch.ones(len(ids), dtype=torch.bool), shape_of(node))


def instance_norm(flow: Flow, node: fx.Node) -> ActivationSlots:
    """Each channel for itself; one that was 0 stays 0 where nothing is added."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    ids = _lay_all(flow, node, (1, 2, 3, 4))
    own = name_of(node, 2) is None and bool(arg_of(node, 5, True))
    return spread(ids, per_channel(flow.values[source].zero) & own, shape_of(node))


def group_norm(flow: Flow, node: fx.Node) -> ActivationSlots:
    """The channels of a group live together, so that a group's statistics never change."""
    source, groups = node.args[0], int(arg_of(node, 1, 1))
    assert isinstance(source, fx.Node)
    if groups == 1:
        raise UnsupportedGraphError(f"node {node.name}: it normalises over all channels")
    ids = channel_ids(flow, node, source)
    together = ids.reshape(groups, -1)
    flow.sets.tie(together, together[:, :1].expand_as(together))
    _lay_all(flow, node, (2, 3))
    zero = per_channel(flow.values[source].zero).view(groups, -1).all(1, keepdim=True)
    zero = zero.expand_as(together).reshape(-1) & (name_of(node, 3) is None)
    return spread(ids, zero, shape_of(node))


def prelu(flow: Flow, node: fx.Node) -> ActivationSlots:
    """Keeps 0, with one slope for all or one for each channel."""
    if weight_shape(node)[0] > 1:
        _lay_all(flow, node, (1,))
    return value_of(flow, node)


def _lay_all(flow: Flow, node: fx.Node, positions: tuple[int, ...]) -> torch.Tensor:
    """Lay the parameters at these positions out by the channels of the input, `[C]`."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    ids = channel_ids(flow, node, source)
    for position in positions:
        name = name_of(node, position)
        if name is not None:
            flow.lay(name, 0, ids)
    return ids


def read_features(flow: Flow, node: fx.Node) -> None:
    """The end of the graph: the heads read its features."""
    source = node.args[0]
    value = flow.values.get(source) if isinstance(source, fx.Node) else None
    if not isinstance(value, ActivationSlots) or value.ids.dim() != 2:
        raise UnsupportedGraphError("the backbone must end in one feature vector [N, F]")
    assert isinstance(source, fx.Node)
    flow.lay("head_weight", 1, value.ids[0])
    flow.reads.append(Read(node, source, value.ids, value.zero))
