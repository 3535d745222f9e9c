"""A pinned graph sliced to its own domain's channels: exact, because an off channel is 0."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from prunion.runtime.bundle import UnitTable
from prunion.runtime.graph.channels import CHANNEL_AXES, ChannelFlow, channel_slice
from prunion.runtime.graph.inputs import attribute, refusal

__all__ = ["slice_channels"]


def slice_channels(model: Any, table: UnitTable, alive: np.ndarray) -> None:
    """Slice an ONNX model in place to the units `alive` `[U]` bool.

    `model` is pinned: its tables are initializers, its domain a constant. Raises
    UnsupportedGraphError, before anything is changed, naming the node that cannot be followed.
    """
    from onnx import numpy_helper

    graph = model.graph
    constants = {x.name: numpy_helper.to_array(x) for x in graph.initializer}
    flow = ChannelFlow(graph, table, constants)
    stay = np.append(alive, True)
    edits = [edit for node in graph.node for edit in _edits(flow, node, stay)]
    sliced: dict[str, np.ndarray] = {}
    for (name, axis), units in table.slots.items():
        if name in constants:
            array = sliced.get(name, constants[name])
            sliced[name] = np.take(array, np.flatnonzero(stay[units]), axis)
    for initializer in graph.initializer:
        if initializer.name in sliced:
            array = np.ascontiguousarray(sliced[initializer.name])
            initializer.CopyFrom(numpy_helper.from_array(array, initializer.name))
    for number, (node, place, value) in enumerate(edits):
        if place < 0:
            _set_group(node, int(value))
            continue
        name = f"sliced_{number}"
        graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.int64), name))
        node.input[place] = name


def _edits(flow: ChannelFlow, node: Any, stay: np.ndarray) -> Iterator[tuple[Any, int, Any]]:
    """(node, input to replace, its new value); input -1 stands for the attribute `group`."""
    units = flow.of(node.input[0]) if node.input else None
    if node.op_type in ("Conv", "ConvTranspose"):
        yield from _conv_groups(flow, node, stay)
        return
    if units is None or not (units >= 0).any():
        return
    left = stay[units]
    before = np.concatenate([[0], np.cumsum(left)])  # how many are left before each place
    if node.op_type == "Split":
        ends = np.cumsum(flow.constant(node, 1))
        yield node, 1, np.diff(before[np.concatenate([[0], ends])])
    elif node.op_type == "Gather" and attribute(node, "axis", 0) in CHANNEL_AXES:
        index = flow.constant(node, 1).reshape(-1)
        yield node, 1, before[index[left[index]]]
    elif node.op_type == "Slice":
        part = channel_slice(flow, node)
        if part is not None:
            yield node, 1, [before[part[0]]]
            yield node, 2, [before[part[1]]]
    elif node.op_type == "Resize" and not node.input[2]:
        shape = flow.constant(node, 3).copy()
        shape[1] = left.sum()
        yield node, 3, shape
    elif node.op_type == "Reshape":
        shape = flow.constant(node, 1).copy()
        shape[1] = int(left.sum()) * (shape[1] // len(units))
        yield node, 1, shape


def _conv_groups(flow: ChannelFlow, node: Any, stay: np.ndarray) -> Iterator[tuple[Any, int, Any]]:
    """As many groups as the inputs that are left fill: what a group reads stays what it was.

    A weight of one input a group says nothing: depthwise convolutions lose groups with their
    inputs, grouped ones that were cut to one input each keep them, narrower.
    """
    groups, name = attribute(node, "group", 1), node.input[1]
    if groups == 1:
        return
    shape, transposed = flow.constants[name].shape, node.op_type == "ConvTranspose"

    def left(units: np.ndarray | None, count: int) -> int:
        return count if units is None else int(stay[units].sum())

    slots = flow.table.slots
    of_weight = [left(slots.get((name, axis)), shape[axis]) for axis in (0, 1)]
    if transposed:
        remaining = of_weight[0] if shape[0] == groups else groups
    else:
        given = left(flow.of(node.input[0]), groups * shape[1])
        remaining = given // max(of_weight[1], 1)
        if not remaining or given % of_weight[1] or of_weight[0] % remaining:
            raise refusal(node, "its groups would have different widths")
    if remaining != groups:
        yield node, -1, remaining


def _set_group(node: Any, groups: int) -> None:
    for item in node.attribute:
        if item.name == "group":
            item.i = groups
