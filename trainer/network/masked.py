"""The masked network: one trunk, per-domain BatchNorm, switches and heads.

It is what training and evaluation run. Nothing is removed from it: a channel that a domain does
not use is multiplied by 0. Equations are those of dos Santos, Berriel, Oliveira-Santos, Sebe and
Almeida 2023, "Budget-Aware Pruning: Handling Multiple Domains with Less Parameters",
arXiv:2309.11464.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import fx, nn
from torch.func import functional_call

from prunion.runtime.errors import UnsupportedGraphError
from prunion.trainer.backbone import (
    NORMS,
    PIXEL_NORM,
    fold_constants,
    given_name,
    keep_names_apart,
    layer_of_norm,
    name_norms,
    op_name,
    tensor_at,
)
from prunion.trainer.channels import GateSite, Units, find_units
from prunion.trainer.methods import WeightAdapter
from prunion.trainer.network.checks import check_batch, check_same, example_images, features_of
from prunion.trainer.network.domain_norm import DomainNorm, Routing, route
from prunion.trainer.network.stored_graph import graph_to_json

__all__ = ["DomainNet", "Gate", "norm_key"]


class DomainNet(nn.Module):
    """One shared trunk that every domain runs through with its own BatchNorm, switches and head.

    Attributes:
        units: the channel units of the trunk.
        switches: 0/1 per domain and unit `[D, U]`; what evaluation and export use.
        adapter: what makes each domain's weights out of the trunk's (`adapt_network`), or None.
        graph: the backbone's traced graph as plain JSON, which `rebuild_network` reads.
    """

    switches: torch.Tensor

    def __init__(
        self,
        backbone: fx.GraphModule,
        classes: Sequence[int],
        keep: Sequence[str] = (),
        *,
        empty: bool = False,
        tuned: bool = True,
    ) -> None:
        """Every switch on, so that it computes what the backbone does.

        `empty`: its tensors are yet to be loaded, so nothing can be told from what it answers.
        `tuned`: whether the trunk's weights will learn.

        Raises UnsupportedGraphError if no channel can be removed, if an image's answer depends on
        the others in its batch, if it does not compute that after all, or if a parameter that is
        `tuned` is used in several forms.
        """
        super().__init__()
        if not empty:  # a network that was traced by hand; a stored graph's names are the file's
            backbone = keep_names_apart(backbone, but=[PIXEL_NORM])
        example = example_images(backbone)
        expected = features_of(backbone, example)  # before anything is changed
        fold_constants(backbone, tuned=tuned)
        name_norms(backbone)
        self.units: Units = find_units(backbone, keep)
        self.graph = graph_to_json(backbone)
        if not empty:
            check_batch(backbone, example)
        self.classes = tuple(classes)
        self.trunk = _add_domains(backbone, self.units, len(self.classes))
        last = len(self.classes) - 1
        segments = [(0, 1), (last, len(example) - 1)]
        check_same(expected, features_of(self.trunk, example, route(segments, example.device)))
        features = len(self.units.feature_units)
        self.heads = nn.ModuleList(nn.Linear(features, count) for count in self.classes)
        ones = torch.ones(len(self.classes), self.units.table.count)
        self.register_buffer("switches", ones)
        self.adapter: WeightAdapter | None = None

    @property
    def norms(self) -> dict[str, DomainNorm]:
        """The per-domain BatchNorms by the name of the backbone's."""
        return {
            layer_of_norm(name): module
            for name, module in self.trunk.named_modules()
            if isinstance(module, DomainNorm)
        }

    def features(
        self,
        image: torch.Tensor,
        domains: Sequence[tuple[int, int]] | torch.Tensor,
        switches: torch.Tensor | None = None,
        *,
        gated: bool = True,
    ) -> tuple[torch.Tensor, Routing]:
        """Features `[N, F]` of `image` `[N, 3, H, W]` and the routing they took."""
        routing = route(domains, image.device)
        if gated:
            routing = routing.gated(self.switches if switches is None else switches)
        if self.adapter is None or self.adapter.inside:
            return self.trunk(image, routing), routing
        parts = image.split([count for _, count in routing.segments])
        done = []
        for part, segment in zip(parts, routing.segments, strict=True):
            domain, count = segment
            rows = routing.rows.new_full((count,), domain)
            own = replace(routing, segments=(segment,), rows=rows)
            done.append(functional_call(self.trunk, self.own_weights(domain), (part, own)))
        return torch.cat(done), routing

    def drop_units(self, dead: np.ndarray | None) -> None:
        """Switch units `[U]` bool off in every domain; None drops nothing."""
        if dead is not None:
            self.switches[:, torch.from_numpy(np.flatnonzero(dead)).to(self.switches.device)] = 0

    def own_weights(self, domain: int) -> dict[str, torch.Tensor]:
        """The adapted weights of one domain by the names of the trunk's."""
        assert self.adapter is not None
        shared = {name: self.trunk.get_parameter(name) for name in self.adapter.names}
        return self.adapter.weights(shared, domain)

    def forward(
        self,
        image: torch.Tensor,
        domains: Sequence[tuple[int, int]] | torch.Tensor,
        switches: torch.Tensor | None = None,
        *,
        gated: bool = True,
    ) -> list[torch.Tensor]:
        """Logits of each segment of one domain, in batch order: `[count, classes]`.

        Args:
            image: `[N, 3, H, W]`.
            domains: `(domain, count)` segments, or the domain of each image `[N]`.
            switches: `[D, U]` to use instead of the network's own.
            gated: False leaves every switch on.
        """
        features, routing = self.features(image, domains, switches, gated=gated)
        parts = features.split([count for _, count in routing.segments])
        return [self.heads[d](p) for p, (d, _) in zip(parts, routing.segments, strict=True)]

    def logits(self, image: torch.Tensor, domains: torch.Tensor) -> torch.Tensor:
        """Like the exported graph: `[N, max classes]`, -inf past a domain's own classes."""
        widest = max(self.classes)
        rows = [
            nn.functional.pad(part, (0, widest - part.shape[1]), value=-math.inf)
            for part in self(image, domains)
        ]
        return torch.cat(rows)


class Gate(nn.Module):
    """Multiply each channel by its domain's switch: eq. 3, but behind the activation.

    There an off switch still gets a gradient, so that the channel can come back. Between BatchNorm
    and ReLU it would be exactly zero.
    """

    units: torch.Tensor

    def __init__(self, units: np.ndarray, folded: bool, axis: int = 1) -> None:
        """Gate channels of `units` `[C]` along `axis`.

        `folded`: BatchNorm can do it once switches are fixed.
        """
        super().__init__()
        self.folded, self.axis = folded, axis
        self.register_buffer("units", torch.from_numpy(units), persistent=False)

    def forward(self, x: torch.Tensor, routing: Routing) -> torch.Tensor:
        """Gate `[N, C, ...]`, or `[N, ..., C]` where `axis` says so."""
        if routing.switches is None or (self.folded and not routing.learning):
            return x
        gate = routing.gate(self.units)
        gate = gate.to(x.dtype)  # 0 and 1 are exact in bfloat16 too
        before, behind = [1] * (self.axis - 1), [1] * (x.dim() - 1 - self.axis)
        return x * gate.view(len(gate), *before, gate.shape[1], *behind)


def norm_key(node: fx.Node) -> str:
    """Name of the BatchNorm module a batch_norm node came from."""
    mean = node.args[3]
    assert isinstance(mean, fx.Node)
    return str(mean.target).rpartition(".")[0]


def _add_domains(module: fx.GraphModule, units: Units, domains: int) -> fx.GraphModule:
    """Give the traced graph a `routing` input, per-domain BatchNorms and gates."""
    graph = module.graph
    image = next(n for n in graph.nodes if n.op == "placeholder")
    with graph.inserting_after(image):
        routing = graph.placeholder("routing")
        routing.target = routing.name  # a node that reads a tensor may be called `routing` already
    nodes = {n.name: n for n in graph.nodes}
    module.add_submodule("norms", nn.ModuleDict())
    module.add_submodule("gates", nn.ModuleDict())
    swapped = {}
    for node in [n for n in graph.nodes if op_name(n) == "batch_norm"]:
        swapped[node.name] = _swap_norm(module, node, routing, domains, units)
    for site in units.gates:
        source = swapped.get(site.node, nodes[site.node])
        _insert_gate(module, site, source, [nodes[r] for r in site.readers], routing)
    graph.eliminate_dead_code()
    graph.lint()
    return fx.GraphModule(module, graph)  # takes along only what the graph still uses


def _swap_norm(
    module: fx.GraphModule, node: fx.Node, routing: fx.Node, domains: int, units: Units
) -> fx.Node:
    tensors = [_tensor(module, node.args[i]) for i in (1, 2, 3, 4)]
    eps = node.args[7]
    assert tensors[2] is not None and tensors[3] is not None and isinstance(eps, float)
    if eps <= 0:
        raise UnsupportedGraphError(
            f"node {node.name}: its BatchNorm {given_name(norm_key(node))} has eps={eps:g}, with "
            "which torch cannot train: give it an eps > 0, such as 1e-5"
        )
    key = norm_key(node).replace(".", "/")
    norms = module.get_submodule("norms")
    assert isinstance(norms, nn.ModuleDict)
    if key not in norms:
        channels = units.table.slots[f"{norm_key(node)}.running_mean", 0]
        norms[key] = DomainNorm(
            domains, tensors[0], tensors[1], tensors[2], tensors[3], eps, channels
        )
    with module.graph.inserting_after(node):
        new = module.graph.call_module(f"{NORMS}{key}", (node.args[0], routing))
    new.meta = {**node.meta, "stands_for": node.name}
    node.replace_all_uses_with(new)
    module.graph.erase_node(node)
    return new


def _insert_gate(
    module: fx.GraphModule,
    site: GateSite,
    source: fx.Node,
    readers: list[fx.Node],
    routing: fx.Node,
) -> None:
    gates = module.get_submodule("gates")
    assert isinstance(gates, nn.ModuleDict)
    gates[site.node] = Gate(site.units, site.folded, site.axis)
    users = readers or list(source.users)
    with module.graph.inserting_after(source):
        gate = module.graph.call_module(f"gates.{site.node}", (source, routing))
    for user in users:
        user.replace_input_with(source, gate)
    gate.args = (source, routing)
    gate.meta = dict(source.meta)


def _tensor(module: nn.Module, arg: object) -> torch.Tensor | None:
    if not isinstance(arg, fx.Node):
        return None
    return tensor_at(module, str(arg.target))
