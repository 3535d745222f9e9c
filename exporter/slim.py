"""The sliced network: only the channels that some domain uses, one bank row per domain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import fx, nn

from prunion.exporter.layout import Selection, channel_selections
from prunion.runtime.unit_table import Layer, UnitTable
from prunion.trainer.network import DomainNet, Gate
from prunion.trainer.trace import op_name

__all__ = ["Affine", "BankEntry", "SlimNet", "slim_network"]


@dataclass(frozen=True)
class BankEntry:
    """Columns `offset … offset + size` of the bank: the scale or shift of one layer."""

    layer: str
    kind: str
    offset: int
    size: int


class Affine(nn.Module):
    """`x · scale + shift` with the rows of the batch's own domains."""

    def __init__(self, scale: int, shift: int | None, rank: int) -> None:
        super().__init__()
        self.scale, self.shift, self.rank = scale, shift, rank

    def forward(self, x: torch.Tensor, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Scale and shift `[N, C, H, W]` (or `[N, C]`) by parts `[N, C, 1, 1]`."""
        y = x * self._fit(parts[self.scale])
        return y if self.shift is None else y + self._fit(parts[self.shift])

    def _fit(self, part: torch.Tensor) -> torch.Tensor:
        return part if self.rank == 4 else part.flatten(1)


class SlimNet(nn.Module):
    """What the exported graph computes, as a torch module.

    Attributes:
        entries: the bank's columns in order.
        bank: `[D, P]`; head_weight: `[D, F, Cmax]`; head_bias: `[D, Cmax]`, -inf past a
            domain's classes. Buffers, and inputs of `forward`, so that a taller bank fits too.
        table: the unit table over the sliced tensors, units renumbered in order.
        used: which of the remaining units each domain uses, `[D, U]` bool.
    """

    bank: torch.Tensor
    head_weight: torch.Tensor
    head_bias: torch.Tensor

    def __init__(
        self,
        trunk: fx.GraphModule,
        entries: tuple[BankEntry, ...],
        bank: torch.Tensor,
        head_weight: torch.Tensor,
        head_bias: torch.Tensor,
        table: UnitTable,
        used: np.ndarray,
    ) -> None:
        super().__init__()
        self.trunk, self.entries, self.table, self.used = trunk, entries, table, used
        self.register_buffer("bank", bank)
        self.register_buffer("head_weight", head_weight)
        self.register_buffer("head_bias", head_bias)

    def forward(
        self,
        image: torch.Tensor,
        domain: torch.Tensor,
        bank: torch.Tensor,
        head_weight: torch.Tensor,
        head_bias: torch.Tensor,
    ) -> torch.Tensor:
        """Logits `[N, Cmax]` of `image` `[N, 3, H, W]` for `domain` `[N]`."""
        rows = bank.index_select(0, domain).unsqueeze(-1).unsqueeze(-1)
        parts = rows.split([entry.size for entry in self.entries], dim=1)
        features = self.trunk(image, parts)
        weight = head_weight.index_select(0, domain)
        logits = torch.matmul(features.unsqueeze(1), weight).squeeze(1)
        return logits + head_bias.index_select(0, domain)

    def logits(self, image: torch.Tensor, domain: torch.Tensor) -> torch.Tensor:
        """`forward` with the network's own tables."""
        return self(image, domain, self.bank, self.head_weight, self.head_bias)


def slim_network(net: DomainNet, alive: np.ndarray | None = None) -> SlimNet:
    """Cut every channel that no domain uses out of a masked network.

    Args:
        alive: units to keep instead, `[U]` bool, at least those that some domain uses.

    Raises:
        UnsupportedGraphError: a reshape that mixes channels with positions, naming its node.
    """
    used = np.asarray(net.switches.detach().cpu().numpy() > 0)
    union = np.asarray(used.any(axis=0))
    cut = _Cut(net, union if alive is None else union | alive)
    graph, swapped = _sliced_graph(net, cut)
    trunk = fx.GraphModule(swapped, graph)
    head_weight, head_bias = _heads(net, cut)
    return SlimNet(
        trunk,
        tuple(cut.entries),
        torch.cat(cut.rows, dim=1),
        head_weight,
        head_bias,
        _sliced_table(net, cut),
        used[:, cut.alive],
    ).eval()


class _Cut:
    """What stays, and the bank as it grows."""

    def __init__(self, net: DomainNet, alive: np.ndarray) -> None:
        self.alive = alive
        self.table = net.units.table
        self.switches = net.switches.detach()
        self.norms = net.norms  # made anew at every look
        self.entries: list[BankEntry] = []
        self.rows: list[torch.Tensor] = []
        self.units: list[np.ndarray] = []  # unit of every bank column
        self.layer_channels: dict[str, np.ndarray] = {}

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


def _sliced_graph(net: DomainNet, cut: _Cut) -> tuple[fx.Graph, nn.Module]:
    """A copy of the trunk's graph over sliced weights, and the module that holds them."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph_output = graph.graph_copy(net.trunk.graph, copies)
    graph.output(graph_output)
    holder = nn.Module()
    holder.add_module("affine", nn.ModuleDict())
    selections = channel_selections(net.trunk.graph)
    replaced: dict[fx.Node, fx.Node] = {}
    for old, node in copies.items():
        if old in selections:
            chosen = selections[old]
            source = copies[chosen.source]
            _select(graph, node, replaced.get(source, source), _kept(net, cut, chosen), holder)
        elif node.op == "call_module":
            replaced[node] = _swap_module(net, old, node, cut, graph, holder)
        elif node.op == "get_attr":
            _slice_tensor(net, node, cut, holder)
        elif op_name(old) == "conv2d":
            _fix_groups(node, old, cut)
        elif op_name(old) == "pad":
            _pad(node, old, net, cut)
        elif op_name(old) == "mul":
            replaced[node] = _zero_channels(graph, node, old, net, cut)
    graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
    graph.lint()
    return graph, holder


def _swap_module(
    net: DomainNet, old: fx.Node, node: fx.Node, cut: _Cut, graph: fx.Graph, holder: nn.Module
) -> fx.Node:
    """Turn a per-domain BatchNorm or gate into bank columns; returns what stands for it."""
    kind, key = str(old.target).split(".", 1)
    rank = old.args[0].meta["val"].dim() if "val" in old.args[0].meta else 4  # type: ignore
    module = net.trunk.get_submodule(str(old.target))
    affine = holder.get_submodule("affine")
    assert isinstance(affine, nn.ModuleDict)
    if kind == "gates":
        site = next(s for s in net.units.gates if s.node == key)
        if site.folded:
            source = node.args[0]
            assert isinstance(source, fx.Node)
            node.replace_all_uses_with(source)
            graph.erase_node(node)
            return source
        assert isinstance(module, Gate)
        stay = cut.channels(site.units)
        rows = cut.gate(site.units)[:, stay]
        part = cut.add(key, "gate", rows, site.units[stay])
        affine[key] = Affine(part, None, rank)
    else:
        layer = key.replace("/", ".")
        units = net.units.table.slots.get((f"{layer}.running_mean", 0))
        assert units is not None
        stay = cut.channels(units)
        gate = cut.gate(units)[:, stay]
        scale, shift = cut.norms[layer].affine()
        first = cut.add(layer, "scale", scale[:, stay] * gate, units[stay])
        second = cut.add(layer, "shift", shift[:, stay] * gate, units[stay])
        affine[key] = Affine(first, second, rank)
    node.target = f"affine.{key}"
    return node


def _slice_tensor(net: DomainNet, node: fx.Node, cut: _Cut, holder: nn.Module) -> None:
    name = str(node.target)
    owner, _, leaf = name.rpartition(".")
    value = getattr(net.trunk.get_submodule(owner), leaf).detach().cpu()
    for axis in range(value.dim()):
        stay = cut.table.kept(name, axis, value.shape[axis], cut.alive)
        value = value.index_select(axis, torch.from_numpy(stay))
    module = holder
    for step in filter(None, owner.split(".")):
        if not hasattr(module, step):
            module.add_module(step, nn.Module())
        module = module.get_submodule(step)
    module.register_parameter(leaf, nn.Parameter(value.contiguous(), requires_grad=False))


def _fix_groups(node: fx.Node, old: fx.Node, cut: _Cut) -> None:
    """A depthwise convolution has as many groups as channels are left."""
    groups = old.args[6] if len(old.args) > 6 else old.kwargs.get("groups", 1)
    weight = old.args[1]
    assert isinstance(weight, fx.Node) and isinstance(groups, int)
    shape = weight.meta["val"].shape
    if groups == 1 or shape[1] != 1:
        return
    left = len(cut.table.kept(str(weight.target), 0, int(shape[0]), cut.alive))
    args = [*node.args]
    defaults = [None, None, None, [1, 1], [0, 0], [1, 1], 1]
    args += defaults[len(args) :]
    args[6] = left * groups // int(shape[0])
    node.args = tuple(args)
    node.kwargs = {}


@dataclass(frozen=True)
class _Kept:
    """A selection in terms of the sliced source: `places` among its `width` channels."""

    places: np.ndarray
    width: int
    form: str


def _kept(net: DomainNet, cut: _Cut, chosen: Selection) -> _Kept:
    units = net.units.channels[_origin(chosen.source)]
    left = cut.channels(units)
    stay = np.append(cut.alive, True)[units[chosen.channels]]
    return _Kept(np.searchsorted(left, chosen.channels[stay]), len(left), chosen.form)


def _origin(node: fx.Node) -> str:
    """Name of the backbone's own node behind gates and swapped BatchNorms."""
    while node.op == "call_module" and str(node.target).startswith("gates."):
        node = node.args[0]  # type: ignore[assignment]
    return str(node.meta.get("stands_for", node.name))


def _select(
    graph: fx.Graph, node: fx.Node, source: fx.Node, kept: _Kept, holder: nn.Module
) -> None:
    """Put one selection of channels in the place of a chain of layout operations."""
    aten, count = torch.ops.aten, len(kept.places)
    with graph.inserting_before(node):
        if np.array_equal(kept.places, np.arange(kept.width)):
            new = source
        elif count and np.array_equal(kept.places, kept.places[0] + np.arange(count)):
            first = int(kept.places[0])
            new = graph.call_function(aten.slice.Tensor, (source, 1, first, first + count))
        else:
            name = f"channels_{node.name}"
            holder.register_buffer(name, torch.from_numpy(kept.places))
            index = graph.get_attr(name)
            new = graph.call_function(aten.index_select.default, (source, 1, index))
        if kept.form == "flat":
            new = graph.call_function(aten.flatten.using_ints, (new, 1))
        elif kept.form == "spread":
            for _ in range(2):
                new = graph.call_function(aten.unsqueeze.default, (new, -1))
    node.replace_all_uses_with(new)
    graph.erase_node(node)


def _pad(node: fx.Node, old: fx.Node, net: DomainNet, cut: _Cut) -> None:
    """Pad by as many zero channels as are left of those the backbone pads."""
    amounts = list(old.args[1])  # type: ignore[arg-type]
    if not any(amounts[4:]):
        return
    units = net.units.channels[old.name]
    before, after = (*amounts[4:6], 0)[:2]
    amounts[4] = len(cut.channels(units[:before]))
    amounts[5] = len(cut.channels(units[len(units) - after :]))
    node.args = (node.args[0], amounts, *node.args[2:])


def _zero_channels(
    graph: fx.Graph, node: fx.Node, old: fx.Node, net: DomainNet, cut: _Cut
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


def _heads(net: DomainNet, cut: _Cut) -> tuple[torch.Tensor, torch.Tensor]:
    stay = torch.from_numpy(cut.channels(net.units.feature_units))
    widest = max(net.classes)
    weight = torch.zeros(len(net.classes), len(stay), widest)
    bias = torch.full((len(net.classes), widest), -torch.inf)
    for d, head in enumerate(net.heads):
        assert isinstance(head, nn.Linear)
        weight[d, :, : head.out_features] = head.weight.detach().cpu().T[stay]
        bias[d, : head.out_features] = head.bias.detach().cpu()
    return weight, bias


def _sliced_table(net: DomainNet, cut: _Cut) -> UnitTable:
    table = cut.table
    number = np.append(np.cumsum(cut.alive) - 1, -1)  # old unit → new unit, -1 → -1
    slots = {}
    for (tensor, axis), units in table.slots.items():
        if not tensor.endswith((".running_mean", ".running_var")) and not _is_norm(cut, tensor):
            slots[tensor, axis] = number[units[cut.channels(units)]]
    slots["bank", 1] = number[np.concatenate(cut.units)]
    layers = tuple(
        Layer(
            x.weight,
            tuple(len(table.kept(x.weight, a, n, cut.alive)) for a, n in enumerate(x.shape)),
            x.positions,
        )
        for x in table.layers
    )
    return UnitTable(int(cut.alive.sum()), slots, layers)


def _is_norm(cut: _Cut, tensor: str) -> bool:
    return tensor.rpartition(".")[0] in cut.norms
