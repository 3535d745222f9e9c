"""Reshapes, splits and shuffles of channels, told as "these channels of that tensor".

A traced graph has channel counts written into its views and splits. After slicing they are wrong,
and a shuffle's groups may be left with different numbers of channels. Every chain of such
operations between two ordinary activations is therefore replaced by one selection of channels:
`channel_selections` finds them in the full graph, `write_selection` puts what stays of one into
the sliced graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from prunion.exporter.slim.kept import Kept
from prunion.runtime.errors import UnsupportedGraphError
from prunion.trainer.backbone import op_name
from prunion.trainer.channels import LAYOUT

__all__ = ["Selection", "channel_selections", "standing_for", "write_selection"]


@dataclass(frozen=True)
class Selection:
    """A layout node's output as channels of `source`.

    Attributes:
        source: the ordinary activation the chain starts from, `[N, C, ...]`.
        channels: which of its channels, in order.
        form: `same` keeps the rank; `flat` flattens `[N, C, H, W]` into `[N, C·H·W]`; `spread`
            turns `[N, C]` into `[N, C, 1, 1]`.
    """

    source: fx.Node
    channels: np.ndarray
    form: str


def channel_selections(graph: fx.Graph) -> dict[fx.Node, Selection]:
    """Selections for every layout node that an ordinary operation reads.

    Raises:
        UnsupportedGraphError: a chain that does more than select channels, naming its last node.
    """
    origin: dict[fx.Node, tuple[fx.Node, Any]] = {}
    found = {}
    for node in graph.nodes:
        if not _is_layout(node):
            continue
        source = node.args[0]
        assert isinstance(source, fx.Node)
        root, value = origin.get(source) or (source, _positions(source))
        origin[node] = (root, _apply(node, value))
        if any(not _is_layout(user) for user in node.users):
            found[node] = _selection(node, root, origin[node][1])
    return found


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


def _is_layout(node: fx.Node) -> bool:
    if op_name(node) == "slice":  # spatial slices have no channel count in them
        return len(node.args) > 1 and bool(node.args[1] == 1)
    return op_name(node) in LAYOUT | {"contiguous", "clone", "alias"}


def _positions(node: fx.Node) -> torch.Tensor:
    """The number of every element of a node's output for one image."""
    shape = [int(n) for n in node.meta["val"].shape[1:]]
    return torch.arange(int(np.prod(shape))).view(1, *shape)


def _apply(node: fx.Node, value: Any) -> Any:
    """Run a layout operation on element numbers; symbolic batch sizes stand for one image."""
    target: Any = node.target
    rest = fx.node.map_arg(node.args[1:], _size)
    return target(value, *rest, **fx.node.map_arg(dict(node.kwargs), _size))


def _size(node: fx.Node) -> int:
    """A size read from a tensor: the batch is one, everything else is known."""
    if op_name(node) == "sym_size" and node.args[1] == 0:
        return 1
    value = node.meta["val"]
    try:
        return int(value)
    except Exception:  # a product with the symbolic batch
        raise UnsupportedGraphError(
            f"node {node.name}: a size computed from the batch cannot be followed"
        ) from None


def _selection(node: fx.Node, root: fx.Node, value: Any) -> Selection:
    shape = [int(n) for n in root.meta["val"].shape[1:]]
    area = int(np.prod(shape[1:]))
    # Element n of `[C, H, W]` lies in channel n // area at position n % area. The chain is a
    # selection if each of its channels holds one channel of the source, all positions in order.
    if isinstance(value, torch.Tensor):
        if value.dim() == len(shape) + 1:
            channels, within = value.reshape(value.shape[1], -1) // area, value % area
            in_place = within.reshape(value.shape[1], -1) == torch.arange(area)
            if value.shape[2:] == tuple(shape[1:]) and in_place.all() and _constant(channels):
                return Selection(root, channels[:, 0].numpy(), "same")
        elif value.dim() == 2:
            channels = (value.view(-1, area) if value.numel() % area == 0 else value) // area
            ordered = value.view(-1, area) % area == torch.arange(area)
            if ordered.all() and _constant(channels):
                return Selection(root, channels[:, 0].numpy(), "flat")
        elif len(shape) == 1 and value.dim() == 4 and value.shape[2:] == (1, 1):
            return Selection(root, value.flatten().numpy(), "spread")
    raise UnsupportedGraphError(
        f"node {node.name}: {op_name(node)} mixes channels with positions; prunion cannot slice it"
    )


def _constant(channels: torch.Tensor) -> bool:
    return bool((channels == channels[:, :1]).all())
