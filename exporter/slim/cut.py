"""What stays of a masked network, and the bank of per-domain scales and shifts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import fx, nn

from prunion.exporter.slim.selections import Selection
from prunion.runtime.bundle.manifest import BankEntry
from prunion.trainer.network.masked import DomainNet

__all__ = ["Cut", "Kept", "cut_pad", "cut_zero_channels", "kept", "select"]


class Cut:
    """What stays, and the bank as it grows."""

    def __init__(self, net: DomainNet, alive: np.ndarray) -> None:
        self.alive = alive
        self.table = net.units.table
        self.switches = net.switches.detach()
        self.norms = net.norms  # made anew at every look
        self.entries: list[BankEntry] = []
        self.rows: list[torch.Tensor] = []
        self.units: list[np.ndarray] = []  # unit of every bank column

    def channels(self, units: np.ndarray) -> np.ndarray:
        """Indices that stay of channels laid out by `units` (-1 = always)."""
        return np.flatnonzero(np.append(self.alive, True)[units])

    def gate(self, units: np.ndarray) -> torch.Tensor:
        """Switches of channels `units`, `[D, C]`, 1 where there is no switch."""
        ones = self.switches.new_ones(len(self.switches), 1)
        return torch.cat([self.switches, ones], dim=1)[:, torch.from_numpy(units)]

    def add(self, layer: str, kind: str, rows: torch.Tensor, units: np.ndarray) -> int:
        """Append columns `[D, C]` to the bank and return their position among its parts."""
        offset = sum(entry.size for entry in self.entries)
        self.entries.append(BankEntry(layer, kind, offset, rows.shape[1]))
        self.rows.append(rows.detach())
        self.units.append(units)
        return len(self.entries) - 1


@dataclass(frozen=True)
class Kept:
    """A selection in terms of the sliced source: `places` among its `width` channels."""

    places: np.ndarray
    width: int
    form: str


def kept(net: DomainNet, cut: Cut, chosen: Selection) -> Kept:
    """A selection of the full network's channels in terms of the sliced source."""
    units = net.units.channels[_origin(chosen.source)]
    left = cut.channels(units)
    stay = np.append(cut.alive, True)[units[chosen.channels]]
    return Kept(np.searchsorted(left, chosen.channels[stay]), len(left), chosen.form)


def _origin(node: fx.Node) -> str:
    """Name of the backbone's own node behind gates and swapped BatchNorms."""
    while node.op == "call_module" and str(node.target).startswith("gates."):
        node = node.args[0]  # type: ignore[assignment]
    return str(node.meta.get("stands_for", node.name))


def select(graph: fx.Graph, node: fx.Node, source: fx.Node, stay: Kept, holder: nn.Module) -> None:
    """Put one selection of channels in the place of a chain of layout operations."""
    aten, count = torch.ops.aten, len(stay.places)
    with graph.inserting_before(node):
        if np.array_equal(stay.places, np.arange(stay.width)):
            new = source
        elif count and np.array_equal(stay.places, stay.places[0] + np.arange(count)):
            first = int(stay.places[0])
            new = graph.call_function(aten.slice.Tensor, (source, 1, first, first + count))
        else:
            name = f"channels_{node.name}"
            holder.register_buffer(name, torch.from_numpy(stay.places))
            index = graph.get_attr(name)
            new = graph.call_function(aten.index_select.default, (source, 1, index))
        if stay.form == "flat":
            new = graph.call_function(aten.flatten.using_ints, (new, 1))
        elif stay.form == "spread":
            for _ in range(2):
                new = graph.call_function(aten.unsqueeze.default, (new, -1))
    node.replace_all_uses_with(new)
    graph.erase_node(node)


def cut_pad(node: fx.Node, old: fx.Node, net: DomainNet, cut: Cut) -> None:
    """Pad by as many zero channels as are left of those the backbone pads."""
    amounts = list(old.args[1])  # type: ignore[arg-type]
    if not any(amounts[4:]):
        return
    units = net.units.channels[old.name]
    before, after = (*amounts[4:6], 0)[:2]
    amounts[4] = len(cut.channels(units[:before]))
    amounts[5] = len(cut.channels(units[len(units) - after :]))
    node.args = (node.args[0], amounts, *node.args[2:])


def cut_zero_channels(
    graph: fx.Graph, node: fx.Node, old: fx.Node, net: DomainNet, cut: Cut
) -> fx.Node:
    """A product with zero makes as many zero channels as are left of them, not of its input's."""
    source = old.args[0]
    if not isinstance(source, fx.Node) or isinstance(old.args[1], fx.Node) or old.args[1] != 0:
        return node
    made = len(cut.channels(net.units.channels[old.name]))
    given = len(cut.channels(net.units.channels[_origin(source)]))
    with graph.inserting_after(node):
        if made <= given:
            new = graph.call_function(torch.ops.aten.slice.Tensor, (node, 1, 0, made))
        else:
            pad = [0, 0, 0, 0, 0, made - given]
            new = graph.call_function(torch.ops.aten.constant_pad_nd.default, (node, pad))
    node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
    return new
