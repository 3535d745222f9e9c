"""How channel slots pass through operations of several tensors, element by element.

Their channels meet, so they live together. Each handler returns the slots of its node's output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from prunion.runtime.errors import UnsupportedGraphError
from prunion.trainer.backbone import op_name
from prunion.trainer.channels.slots import ActivationSlots, Flow, shape_of, spread, varying

__all__ = ["add", "choose", "compare", "div", "mul"]


def add(flow: Flow, node: fx.Node) -> ActivationSlots:
    """Both sides become the same units; the sum is 0 where both are."""
    tensors, other = _operands(flow, node, node.args[:2])
    if len(tensors) == 2:
        ids, (zero_a, zero_b) = _tied(flow, node, *tensors)
        return ActivationSlots(ids, zero_a & zero_b)
    return ActivationSlots(tensors[0].ids, tensors[0].zero & (other == 0))


def mul(flow: Flow, node: fx.Node) -> ActivationSlots:
    """Both sides become the same units; the product is 0 where either is."""
    tensors, other = _operands(flow, node, node.args[:2])
    if len(tensors) == 2:
        ids, (zero_a, zero_b) = _tied(flow, node, *tensors)
        return ActivationSlots(ids, zero_a | zero_b)
    if other == 0:  # how some shortcuts make zero channels: nothing ties them to their source
        if set(varying(tensors[0].ids)) - {1}:
            raise UnsupportedGraphError(f"node {node.name}: its channels are not on axis 1")
        count = tensors[0].ids.shape[1]
        return spread(flow.sets.fresh(count), torch.ones(count, dtype=torch.bool), shape_of(node))
    return tensors[0]


def div(flow: Flow, node: fx.Node) -> ActivationSlots:
    """Division by a number or a parameter; a divisor whose channels go off would be 0."""
    if isinstance(node.args[0], fx.Node) and node.args[0].op != "get_attr":
        tensors, _ = _operands(flow, node, node.args[:2])
        if len(tensors) == 1:
            return tensors[0]
    raise UnsupportedGraphError(f"node {node.name}: it divides by what it computes")


def choose(flow: Flow, node: fx.Node) -> ActivationSlots:
    """Element by element one of several (`where`, a maximum): 0 where all are."""
    name = op_name(node)
    chosen = {"where": node.args[1:3], "masked_fill": node.args[:3:2]}
    tensors, other = _operands(flow, node, chosen.get(name, node.args[:2]))
    if not tensors:
        raise UnsupportedGraphError(f"node {node.name}: it chooses between constants")
    ids, zero = tensors[0].ids, tensors[0].zero & (len(tensors) == 2 or other == 0)
    for tensor in tensors[1:]:
        ids, (zero_a, zero_b) = _tied(flow, node, tensors[0], tensor)
        zero = zero_a & zero_b
    condition = node.args[0 if name == "where" else 1]
    if name in chosen and isinstance(condition, fx.Node):
        if condition.op == "get_attr":
            _lay_parameter(flow, node, condition)
        else:
            ids, (zero, _) = _tied(flow, node, ActivationSlots(ids, zero), flow.values[condition])
    return ActivationSlots(ids, zero)


def compare(flow: Flow, node: fx.Node) -> ActivationSlots:
    """A mask: what an off channel compares to is nobody's business."""
    tensors, _ = _operands(flow, node, node.args[:2])
    ids = tensors[0].ids
    if len(tensors) == 2:
        ids, _ = _tied(flow, node, *tensors)
    return ActivationSlots(ids, torch.zeros(1, dtype=torch.bool).expand(ids.shape))


def _operands(
    flow: Flow, node: fx.Node, args: Sequence[Any]
) -> tuple[list[ActivationSlots], float | None]:
    """The activations among operands, and the number; None where that is a parameter."""
    tensors: list[ActivationSlots] = []
    other: float | None = None
    for arg in args:
        if isinstance(arg, fx.Node) and arg.op == "get_attr":
            _lay_parameter(flow, node, arg)
        elif isinstance(arg, fx.Node) and isinstance(flow.values[arg], ActivationSlots):
            tensors.append(flow.values[arg])
        else:
            other = float(arg)
    return tensors, other


def _lay_parameter(flow: Flow, node: fx.Node, parameter: fx.Node) -> None:
    """A scale or offset that meets the other operand's channels on one of its axes."""
    source = next(x for x in node.all_input_nodes if x.op != "get_attr")
    shape, value = parameter.meta["val"].shape, flow.values[source]
    rank, differ = value.ids.dim(), varying(value.ids)
    lead = rank - len(shape)
    if lead < 0 or (lead == 0 and shape[0] != 1):
        raise UnsupportedGraphError(
            f"node {node.name}: {parameter.target} {list(shape)} is no scale or shift of channels"
        )
    along = [d for d in differ if d >= lead and shape[d - lead] > 1]
    wider = [d for d in range(max(lead, 1), rank) if shape[d - lead] > value.ids.shape[d]]
    if wider and (1 in wider or set(wider) & set(differ)):
        made, given = shape[wider[0] - lead], value.ids.shape[wider[0]]
        raise UnsupportedGraphError(
            f"node {node.name}: {parameter.target} makes {made} channels of {given}"
        )
    if len(along) > 1:
        raise UnsupportedGraphError(f"node {node.name}: {parameter.target} meets several axes")
    for d in along:
        others = value.ids
        for axis in range(rank):
            if axis != d:
                others = others.narrow(axis, 0, 1)
        flow.sets.tie(value.ids, others.expand(value.ids.shape))
        flow.lay(str(parameter.target), d - lead, others.reshape(-1))


def _tied(
    flow: Flow, node: fx.Node, a: ActivationSlots, b: ActivationSlots
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """Two operands broadcast and tied element by element: their ids, and both zero flags.

    One channel that meets many, as a map of places that matter does, is never removed: tied to
    them it would leave only all or none.
    """
    if a.ids.dim() != b.ids.dim():
        raise UnsupportedGraphError(f"node {node.name}: its operands have different ranks")
    once = {}
    for this, other in ((0, 1), (1, 0)):
        x, y = (a, b)[this], (a, b)[other]
        once[this] = any(x.ids.shape[d] == 1 < y.ids.shape[d] for d in varying(y.ids))
    if all(once.values()):
        raise UnsupportedGraphError(f"node {node.name}: each channel meets each of the others")
    ids_a, ids_b = torch.broadcast_tensors(a.ids, b.ids)
    zero_a, zero_b = torch.broadcast_tensors(a.zero, b.zero)
    if once[0] or once[1]:
        flow.sets.fix((a, b)[0 if once[0] else 1].ids)
        never = torch.zeros(1, dtype=torch.bool).expand(zero_a.shape)
        return (ids_b, (never, zero_b)) if once[0] else (ids_a, (zero_a, never))
    flow.sets.tie(ids_a, ids_b)
    return ids_a, (zero_a, zero_b)
