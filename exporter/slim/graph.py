"""The trunk's graph over sliced weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx, nn

from prunion.exporter.slim.cut import Cut, cut_pad, cut_zero_channels, kept, select
from prunion.exporter.slim.selections import channel_selections
from prunion.trainer.backbone.trace import op_name
from prunion.trainer.network.masked import DomainNet, Gate

__all__ = ["Affine", "sliced_graph"]


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


def sliced_graph(net: DomainNet, cut: Cut) -> tuple[fx.Graph, nn.Module]:
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
            select(graph, node, replaced.get(source, source), kept(net, cut, chosen), holder)
        elif node.op == "call_module":
            replaced[node] = _swap_module(net, old, node, cut, graph, holder)
        elif node.op == "get_attr":
            _slice_tensor(net, node, cut, holder)
        elif op_name(old) == "conv2d":
            _fix_groups(node, old, cut)
        elif op_name(old) == "pad":
            cut_pad(node, old, net, cut)
        elif op_name(old) == "mul":
            replaced[node] = cut_zero_channels(graph, node, old, net, cut)
    graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
    graph.lint()
    return graph, holder


def _swap_module(
    net: DomainNet, old: fx.Node, node: fx.Node, cut: Cut, graph: fx.Graph, holder: nn.Module
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


def _slice_tensor(net: DomainNet, node: fx.Node, cut: Cut, holder: nn.Module) -> None:
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


def _fix_groups(node: fx.Node, old: fx.Node, cut: Cut) -> None:
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
