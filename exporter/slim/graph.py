"""The trunk's graph over sliced weights: counts written into it are made to fit what stays."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx, nn

from prunion.exporter.slim.beside import insert_adapters
from prunion.exporter.slim.kept import Kept
from prunion.exporter.slim.selections import (
    located,
    standing_for,
    write_selection,
    write_sizes,
)
from prunion.runtime.base import reason_of
from prunion.runtime.errors import PrunionError, UnsupportedGraphError
from prunion.trainer.backbone import layer_of_norm, op_name, put_tensor, tensor_at
from prunion.trainer.channels import find_chains
from prunion.trainer.network import Gate

__all__ = ["Affine", "sliced_graph"]


class Affine(nn.Module):
    """`x · scale + shift` with the rows of the batch's own domains."""

    def __init__(self, scale: int, shift: int | None, rank: int, axis: int = 1) -> None:
        """Of activations of `rank` axes, with the channels along `axis`."""
        super().__init__()
        self.scale, self.shift, self.rank, self.axis = scale, shift, rank, axis

    @property
    def behind(self) -> int:
        """How many axes stand behind the channels."""
        return self.rank - 1 - self.axis

    def forward(self, x: torch.Tensor, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Scale and shift `[N, C, H, W]` (or `[N, C]`, `[N, T, C]`) by parts `[N, C, 1, 1]`."""
        y = x * self._fit(parts[self.scale])
        return y if self.shift is None else y + self._fit(parts[self.shift])

    def _fit(self, part: torch.Tensor) -> torch.Tensor:
        if self.rank == 4 and self.axis == 1:
            return part
        part = part.flatten(1)
        for _ in range(self.axis - 1):
            part = part.unsqueeze(1)
        for _ in range(self.behind):
            part = part.unsqueeze(-1)
        return part


def sliced_graph(kept: Kept) -> tuple[fx.Graph, nn.Module]:
    """A copy of the trunk's graph over sliced weights, and the module that holds them.

    The bank's columns are added to `kept` on the way, in the order of the graph; those of the table
    of adapters are parts behind them.
    """
    net, graph = kept.net, fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph_output = graph.graph_copy(net.trunk.graph, copies)
    graph.output(graph_output)
    holder = nn.Module()
    holder.add_module("affine", nn.ModuleDict())
    beside, replaced = insert_adapters(graph, copies, kept)
    holder.add_module("beside", beside)
    chains = find_chains(net.trunk, lambda node: located(node, kept))
    for old, node in copies.items():
        try:
            if old in chains.whole:
                raise UnsupportedGraphError(
                    f"node {old.name}: {op_name(old)} mixes channels with positions; prunion "
                    "cannot slice it: please report this network as a bug"
                )
            if old in chains.selections:
                source = copies[chains.selections[old].source]
                source = replaced.get(source, source)
                write_selection(graph, node, source, chains.selections[old], kept, holder)
            elif old in chains.resized:
                write_sizes(node, old, chains.resized[old], kept)
            elif node.op == "call_module":
                replaced[node] = _swap_module(old, node, kept, graph, holder)
            elif node.op == "get_attr":
                _slice_tensor(node, kept, holder)
            elif op_name(old).startswith("conv"):
                _fix_groups(node, old, kept)
            elif op_name(old) == "group_norm":
                _fix_norm_groups(node, old, kept)
            elif op_name(old) == "pad":
                _slice_pad(node, old, kept)
            elif op_name(old) == "adaptive_avg_pool2d":
                _average(node)
            elif op_name(old) == "mul":
                replaced[node] = _slice_zeros(graph, node, old, kept)
        except (PrunionError, OSError, MemoryError):  # said already, or not the network's doing
            raise
        except Exception as exc:  # an argument of a kind that nobody thought of
            raise UnsupportedGraphError(
                f"node {old.name}: prunion cannot slice {op_name(old) or old.target} as it is used "
                f"there ({reason_of(exc)}): please report this network as a bug"
            ) from exc
    graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
    graph.lint()
    return graph, holder


def _average(node: fx.Node) -> None:
    """Pool to one pixel by a mean, which is what it is.

    Behind channels that lie last torch's exporter would write the pooled image as a gather from one
    long row, which nobody can slice.
    """
    source, size = node.args
    if size in (1, [1], [1, 1], (1, 1)):
        node.target = torch.ops.aten.mean.dim
        node.args = source, [-1, -2], True


def _swap_module(
    old: fx.Node, node: fx.Node, kept: Kept, graph: fx.Graph, holder: nn.Module
) -> fx.Node:
    """Turn a per-domain BatchNorm or gate into bank columns; returns what stands for it."""
    net, (kind, key) = kept.net, str(old.target).split(".", 1)
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
        stay = kept.channels(site.units)
        rows = kept.gate(site.units)[:, stay]
        part = kept.add(key, "gate", rows, site.units[stay])
        affine[key] = Affine(part, None, rank, site.axis)
    else:
        first = kept.add_norm(layer_of_norm(str(old.target)))
        if key in affine and affine[key].rank != rank:  # shared by a map and by what is pooled
            key = f"{key}:{rank}"
        affine[key] = Affine(first, first + 1, rank)
    node.target = f"affine.{key}"
    return node


def _slice_tensor(node: fx.Node, kept: Kept, holder: nn.Module) -> None:
    net, name = kept.net, str(node.target)
    value = tensor_at(net.trunk, name).detach().cpu()
    for axis in range(value.dim()):
        stay = kept.table.kept(name, axis, value.shape[axis], kept.alive)
        value = value.index_select(axis, torch.from_numpy(stay))
    put_tensor(holder, name, nn.Parameter(value.contiguous(), requires_grad=False))


def _fix_groups(node: fx.Node, old: fx.Node, kept: Kept) -> None:
    """A depthwise convolution has as many groups as channels are left."""
    place = 6  # of `groups` among the arguments; a transposed one has its padding twice
    groups = old.args[place] if len(old.args) > place else old.kwargs.get("groups", 1)
    weight = old.args[1]
    assert isinstance(weight, fx.Node)
    if not isinstance(groups, int):
        raise UnsupportedGraphError(
            f"node {old.name}: its number of groups is computed from the batch, which no ONNX "
            "graph can say: end the backbone before it ([backbone] cut)"
        )
    shape = weight.meta["val"].shape
    if groups == 1 or shape[1] != 1 or weight.op != "get_attr":
        return
    left = len(kept.table.kept(str(weight.target), 0, int(shape[0]), kept.alive))
    if left == int(shape[0]):
        return
    args, schema = [*node.args], node.target._schema.arguments  # type: ignore[union-attr]
    args += [node.kwargs.get(a.name, a.default_value) for a in schema[len(args) :]]
    args[place] = left * groups // int(shape[0])
    node.args = tuple(args)
    node.kwargs = {}


def _fix_norm_groups(node: fx.Node, old: fx.Node, kept: Kept) -> None:
    """Groups leave whole."""
    source, groups = old.args[:2]
    assert isinstance(source, fx.Node)
    units = kept.net.units.channels.get(standing_for(source))
    if units is None or not (units >= 0).any():  # kept whole
        return
    assert isinstance(groups, int)
    left = len(kept.channels(units)) * groups // len(units)
    node.args = (node.args[0], left, *node.args[2:])


def _slice_pad(node: fx.Node, old: fx.Node, kept: Kept) -> None:
    """Pad by as many zero channels as are left of those the backbone pads."""
    amounts, units = list(old.args[1]), kept.net.units.channels.get(old.name)  # type: ignore[arg-type]
    # One that is kept whole may pad by anything, also by less than nothing.
    if units is None or not (units >= 0).any():
        return
    if old.meta["val"].dim() != 4 or not any(amounts[4:]):
        return
    before, after = amounts[4:6]
    amounts[4] = len(kept.channels(units[:before]))
    amounts[5] = len(kept.channels(units[len(units) - after :]))
    node.args = (node.args[0], amounts, *node.args[2:])


def _slice_zeros(graph: fx.Graph, node: fx.Node, old: fx.Node, kept: Kept) -> fx.Node:
    """A product with zero makes as many zero channels as are left of them, not of its input's.

    So do shortcuts that widen a stream by zeros: their channels live on without any of the input's.
    """
    source = old.args[0]
    if not isinstance(source, fx.Node) or isinstance(old.args[1], fx.Node) or old.args[1] != 0:
        return node
    units = kept.net.units.channels.get(old.name)
    if units is None or not (units >= 0).any():  # kept whole, as its input then is
        return node
    made = len(kept.channels(units))
    given = len(kept.channels(kept.net.units.channels[standing_for(source)]))
    with graph.inserting_after(node):
        if made <= given:
            new = graph.call_function(torch.ops.aten.slice.Tensor, (node, 1, 0, made))
        else:
            pad = [0] * (2 * source.meta["val"].dim() - 4) + [0, made - given]
            new = graph.call_function(torch.ops.aten.constant_pad_nd.default, (node, pad))
    node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
    return new
