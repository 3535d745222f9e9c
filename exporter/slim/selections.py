"""Chains of reshapes, splits and shuffles, written for the channels that stay."""

from __future__ import annotations

import numpy as np
import torch
from torch import fx, nn

from prunion.exporter.slim.kept import Kept
from prunion.trainer.backbone import op_name
from prunion.trainer.channels import NEVER_CUT, Located, Resized, Selection

__all__ = ["located", "standing_for", "write_selection", "write_sizes"]

SIZED = frozenset("view reshape _unsafe_view expand broadcast_to".split())


def located(node: fx.Node, kept: Kept) -> Located | None:
    """Units of an activation's channels, and the axis along which they lie."""
    if node.op == "get_attr":
        return NEVER_CUT
    units, name = kept.net.units, standing_for(node)
    if name not in units.channels:
        return None
    return units.channels[name], units.axes[name]


def write_selection(
    graph: fx.Graph,
    node: fx.Node,
    source: fx.Node,
    selection: Selection,
    kept: Kept,
    holder: nn.Module,
) -> None:
    """Put what stays of a selection in the place of its last layout node.

    Args:
        node: that node in the sliced graph.
        source: the sliced graph's node that gives the channels to select from.
        holder: the module that gets the indices as a buffer where a slice does not do.
    """
    units = kept.net.units.channels[standing_for(selection.source)]
    left = kept.channels(units)
    stay = np.append(kept.alive, True)[units[selection.channels]]
    places = np.searchsorted(left, selection.channels[stay])
    aten, count = torch.ops.aten, len(places)
    with graph.inserting_before(node):
        if np.array_equal(places, np.arange(len(left))):
            new = source
        elif count and np.array_equal(places, places[0] + np.arange(count)):
            first = int(places[0])
            new = graph.call_function(aten.slice.Tensor, (source, 1, first, first + count))
        else:
            name = f"channels_{node.name}"
            holder.register_buffer(name, torch.from_numpy(places))
            index = graph.get_attr(name)
            # OpenVINO moves a Gather that reorders all channels along axis 1 into the weights of
            # the next convolution, in the wrong order. One counted from the end it leaves alone.
            axis = -3 if selection.source.meta["val"].dim() == 4 else 1
            new = graph.call_function(aten.index_select.default, (source, axis, index))
        if selection.form == "flat":
            new = graph.call_function(aten.flatten.using_ints, (new, 1))
        elif selection.form == "spread":
            for _ in range(2):
                new = graph.call_function(aten.unsqueeze.default, (new, -1))
    node.replace_all_uses_with(new)
    graph.erase_node(node)


def standing_for(node: fx.Node) -> str:
    """Name of the backbone's own node behind gates and swapped BatchNorms."""
    while node.op == "call_module" and str(node.target).startswith("gates."):
        node = node.args[0]  # type: ignore[assignment]
    return str(node.meta.get("stands_for", node.name))


def write_sizes(node: fx.Node, old: fx.Node, resized: Resized, kept: Kept) -> None:
    """Write the number of channels that stay into a layout node.

    Args:
        node: that node in the sliced graph, `old` in the full one.
    """
    stay = len(kept.channels(kept.net.units.channels[standing_for(resized.source)]))
    shape = list(resized.shape)
    shape[resized.axis] = round(resized.share * stay)
    if op_name(old) in SIZED:
        given = node.args[1]
        assert isinstance(given, list | tuple)
        # The batch stays as it is written, and so does a size that is left open.
        sizes = [n if d == 0 or n == -1 else shape[d] for d, n in enumerate(given)]
        node.args = (node.args[0], sizes, *node.args[2:])
    elif op_name(old) == "unflatten":
        dim, given = node.args[1:3]
        assert isinstance(dim, int) and isinstance(given, list | tuple)
        first = dim % (len(shape) - len(given) + 1)
        node.args = (node.args[0], dim, shape[first : first + len(given)], *node.args[3:])
