"""One domain's own network: BatchNorm folded into the convolutions, no `domain`, one head."""

from __future__ import annotations

from typing import Literal

import torch
from torch import fx, nn

from prunion.exporter.slim.graph import Affine
from prunion.exporter.slim.network import SlimNet
from prunion.runtime.bundle import SlotUnits, UnitTable
from prunion.trainer.backbone import op_name, put_tensor

__all__ = ["OneDomainNet", "fold_domain"]


AXES_BEHIND = {"conv2d": 2, "linear": 0}  # a layer's outputs: [N, C, H, W], and [..., C]


class OneDomainNet(nn.Module):
    """An ordinary convolutional network of one domain.

    Attributes:
        head_weight: `[F, C]`; head_bias: `[C]`.
        table: the unit table over its tensors.
    """

    head_weight: torch.Tensor
    head_bias: torch.Tensor

    def __init__(
        self, trunk: fx.GraphModule, weight: torch.Tensor, bias: torch.Tensor, table: UnitTable
    ) -> None:
        super().__init__()
        self.trunk, self.table = trunk, table
        self.register_buffer("head_weight", weight)
        self.register_buffer("head_bias", bias)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits `[N, C]` of `image` `[N, 3, H, W]`."""
        return torch.addmm(self.head_bias, self.trunk(image), self.head_weight)


def fold_domain(slim: SlimNet) -> OneDomainNet:
    """Fold the bank of a sliced network of one domain into its weights.

    An affine behind a convolution or linear layer that nothing else reads goes into its weight
    and bias; any other (in front of a pre-activation block) stays as a constant product and sum;
    a gate whose channels are all on disappears.
    """
    if len(slim.bank) != 1:
        raise ValueError(f"{len(slim.bank)} domains: slice to one first")
    parts = slim.bank[0].split([entry.size for entry in slim.entries])
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(slim.trunk.graph, copies))
    holder = _parameters(slim.trunk)
    slots = dict(slim.table.slots)
    for old, node in copies.items():
        if node.op != "call_module":
            continue
        affine = slim.trunk.get_submodule(str(old.target))
        assert isinstance(affine, Affine)
        scale = parts[affine.scale]
        shift = None if affine.shift is None else parts[affine.shift]
        name = str(old.target).rpartition(".")[2]
        _fold(graph, node, holder, scale, shift, name, affine.behind, slots)
    graph.eliminate_dead_code()
    for node in list(graph.nodes):
        if node.op == "placeholder" and not node.users:
            graph.erase_node(node)
    graph.lint()
    slots.pop(("bank", 1), None)
    slots["head_weight", 0] = slots.pop(("head_weight", 1))
    table = UnitTable(slim.table.count, slots, slim.table.layers)
    count = int(torch.isfinite(slim.head_bias[0]).sum())
    weight, bias = slim.head_weight[0, :, :count].clone(), slim.head_bias[0, :count].clone()
    return OneDomainNet(fx.GraphModule(holder, graph), weight, bias, table).eval()


def _parameters(trunk: fx.GraphModule) -> nn.Module:
    """A module with the trunk's tensors, copied so that folding leaves the original alone."""
    holder = nn.Module()
    for name, value in [*trunk.named_parameters(), *trunk.named_buffers()]:
        _put(holder, name, value.detach().clone(), isinstance(value, nn.Parameter))
    return holder


def _put(holder: nn.Module, name: str, value: torch.Tensor, parameter: bool = True) -> None:
    if parameter:
        value = nn.Parameter(value.contiguous(), requires_grad=False)
    put_tensor(holder, name, value)


def _fold(
    graph: fx.Graph,
    node: fx.Node,
    holder: nn.Module,
    scale: torch.Tensor,
    shift: torch.Tensor | None,
    key: str,
    behind: int,
    slots: SlotUnits,
) -> None:
    """Leave out an affine, put it into its layer, or make it a product and a sum of constants.

    Args:
        key: of the affine among the trunk's.
        behind: how many axes stand behind its channels.
    """
    source = node.args[0]
    assert isinstance(source, fx.Node)
    if shift is None and bool((scale == 1).all()):
        node.replace_all_uses_with(source)
    elif shift is not None and _foldable(source, node, behind):
        _into_weight(graph, source, holder, scale, shift, slots)
        node.replace_all_uses_with(source)
    else:
        with graph.inserting_before(node):
            new = _constant(graph, holder, source, scale, "scale", key, behind)
            if shift is not None:
                new = _constant(graph, holder, new, shift, "shift", key, behind)
        node.replace_all_uses_with(new)
    graph.erase_node(node)


def _foldable(source: fx.Node, node: fx.Node, behind: int) -> bool:
    """Whether a layer's own outputs are scaled: a norm behind a linear layer may be over tokens."""
    if AXES_BEHIND.get(op_name(source)) != behind or set(source.users) != {node}:
        return False
    weight = source.args[1]
    same = [n for n in source.graph.nodes if n.op == "get_attr" and n.target == weight.target]  # type: ignore[union-attr]
    return len(same) == 1 and len(same[0].users) == 1  # a shared weight keeps its own values


def _into_weight(
    graph: fx.Graph,
    layer: fx.Node,
    holder: nn.Module,
    scale: torch.Tensor,
    shift: torch.Tensor,
    slots: SlotUnits,
) -> None:
    name = str(layer.args[1].target)  # type: ignore[union-attr]
    weight = holder.get_parameter(name)
    bias_name = f"{name.rpartition('.')[0]}.bias".removeprefix(".")
    old = layer.args[2] if len(layer.args) > 2 else layer.kwargs.get("bias")
    bias = shift.clone()
    if isinstance(old, fx.Node):
        bias_name = str(old.target)
        bias += scale * holder.get_parameter(bias_name)
    # float64 in between: the product is rounded once.
    view = scale.double().view(-1, *([1] * (weight.dim() - 1)))
    _put(holder, name, (weight.detach().double() * view).float())
    _put(holder, bias_name, bias)
    if (name, 0) in slots:
        slots[bias_name, 0] = slots[name, 0]
    with graph.inserting_before(layer):
        attribute = graph.get_attr(bias_name)
    kwargs = {k: v for k, v in layer.kwargs.items() if k != "bias"}
    layer.args, layer.kwargs = (*layer.args[:2], attribute, *layer.args[3:]), kwargs


def _constant(
    graph: fx.Graph,
    holder: nn.Module,
    source: fx.Node,
    value: torch.Tensor,
    kind: Literal["scale", "shift"],
    key: str,
    behind: int,
) -> fx.Node:
    name = f"affine_{key.replace('/', '_')}_{kind}"
    _put(holder, name, value.view(-1, *([1] * behind)), parameter=False)
    aten = torch.ops.aten
    operation = aten.mul.Tensor if kind == "scale" else aten.add.Tensor
    return graph.call_function(operation, (source, graph.get_attr(name)))
