"""A small residual layer behind each filter bank: `y = z + α_d·BN_d(z)` with `z = f∗x`.

Series residual adapters: Rebuffi, Bilen and Vedaldi 2018, "Efficient parametrization of
multi-domain deep neural networks", arXiv:1803.10082, section 3.1.1, after "Learning multiple visual
domains with residual adapters", 2017, arXiv:1705.08045. In evaluation their BatchNorm is `s·z + t`,
so an adapter is one convolution with the filters `(I + α·diag(s))·f`, and a shift that the
BatchNorm behind takes up: exact, and free at run time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any, Protocol

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional as F

from prunion.runtime.errors import ConfigError
from prunion.trainer.backbone import NORM_MOMENTUM, NORMS, op_name
from prunion.trainer.config import Phase, TrainConfig
from prunion.trainer.methods.adapter import (
    NUMBER_BITS,
    SmallMatrices,
    WeightAdapter,
    key_of_weight,
    numbers_in,
    plain,
)
from prunion.trainer.methods.residual.parallel import squares
from prunion.trainer.processes import ALONE, Processes, synced_norm

__all__ = ["MixedOutputs", "SeriesAdapters", "SeriesSite", "fold_series"]

EPS = 1e-5


class _Routing(Protocol):
    """As much of a forward pass's routing as a site reads: whose images stand where."""

    @property
    def segments(self) -> tuple[tuple[int, int], ...]: ...


class SeriesSite(nn.Module):
    """α `[D, C, C]`, 0 at the start, and a BatchNorm of its own for every domain."""

    running_mean: torch.Tensor
    running_var: torch.Tensor

    def __init__(self, domains: int, channels: int, dropout: float) -> None:
        super().__init__()
        self.dropout, self.momentum = dropout, NORM_MOMENTUM
        self.processes: Processes = ALONE  # whose slices make a batch's statistics
        self.alpha = nn.Parameter(torch.zeros(domains, channels, channels))
        self.weight = nn.Parameter(torch.ones(domains, channels))
        self.bias = nn.Parameter(torch.zeros(domains, channels))
        self.register_buffer("running_mean", torch.zeros(domains, channels))
        self.register_buffer("running_var", torch.ones(domains, channels))

    def forward(self, z: torch.Tensor, routing: _Routing) -> torch.Tensor:
        """`[N, C, H, W]` of any domains → the same."""
        sizes, own = [count for _, count in routing.segments], self._normal(z, routing)
        pairs = zip(own.split(sizes), routing.segments, strict=True)
        return z + torch.cat(
            [F.conv2d(part, self.alpha[domain][..., None, None]) for part, (domain, _) in pairs]
        )

    def _normal(self, z: torch.Tensor, routing: _Routing) -> torch.Tensor:
        running = (self.running_mean, self.running_var)
        if self.training and self.processes.slices:
            weight, bias, processes = self.weight, self.bias, self.processes
            z = synced_norm(
                z, routing.segments, weight, bias, running, self.momentum, EPS, processes
            )
        else:
            parts = z.split([count for _, count in routing.segments])
            pairs = zip(parts, routing.segments, strict=True)
            z = torch.cat([self._one(part, domain) for part, (domain, _) in pairs])
        return F.dropout2d(z, self.dropout, self.training)

    def _one(self, z: torch.Tensor, domain: int) -> torch.Tensor:
        if not len(z):  # another process has this domain's images
            return z
        mean, variance = self.running_mean[domain], self.running_var[domain]
        affine = (self.weight[domain], self.bias[domain])
        return F.batch_norm(z, mean, variance, *affine, self.training, self.momentum, EPS)

    def folded(self) -> tuple[torch.Tensor, torch.Tensor]:
        """`α·diag(s)` `[D, C, C]`, and the shift `α·t` `[D, C]`, of evaluation."""
        scale = self.weight * torch.rsqrt(self.running_var + EPS)
        shift = self.bias - self.running_mean * scale
        added = torch.einsum("doc,dc->do", self.alpha, shift)
        return self.alpha * scale[:, None, :], added


class SeriesAdapters(WeightAdapter):
    """Sites inside the trunk's own graph: what learns reads the activations themselves.

    Attributes:
        inside: that the graph holds them, so that no weight is replaced while it learns.
    """

    inside = True

    def __init__(
        self, train: TrainConfig, trunk: fx.GraphModule, names: Sequence[str], domains: int
    ) -> None:
        """Put a site behind each of the convolutions that a BatchNorm of its own alone reads.

        Raises ConfigError if there is none: there a BatchNorm could not take up the shift.
        """
        super().__init__()
        placed = {name: node for name, node in _followed(trunk).items() if name in set(names)}
        if not placed:
            raise ConfigError(
                '[train] method is "series", and no convolution of this network that it would '
                'adapt has a BatchNorm of its own right behind it: set method = "parallel"'
            )
        self.names, self.train_config = tuple(placed), train
        routing = [n for n in trunk.graph.nodes if n.op == "placeholder"][1]
        trunk.add_submodule("series", nn.ModuleDict())
        holder = trunk.get_submodule("series")
        assert isinstance(holder, nn.ModuleDict)
        for name, layer in placed.items():
            channels = trunk.get_parameter(name).shape[0]
            holder[key_of_weight(name)] = SeriesSite(domains, channels, train.adapter_dropout)
            with trunk.graph.inserting_after(layer):
                target = f"series.{key_of_weight(name)}"
                site = trunk.graph.call_module(target, (layer, routing))
            layer.replace_all_uses_with(site)
            site.args = (layer, routing)
            site.meta = dict(layer.meta)
        trunk.graph.lint()
        trunk.recompile()
        # Not registered here: they are the trunk's, whose state holds them.
        self._sites = tuple(m for m in holder.values() if isinstance(m, SeriesSite))

    @property
    def domains(self) -> int:
        """How many have a row."""
        return len(self._sites[0].alpha)

    def bits(self) -> int:
        """32 for each number of α and of BatchNorm's scale and shift."""
        return NUMBER_BITS * sum(p[0].numel() for site in self._sites for p in site.parameters())

    def groups(self, train: TrainConfig) -> list[dict[str, Any]]:
        """All of the sites' parameters, which are not this module's own."""
        own = [p for site in self._sites for p in site.parameters()]
        return [{"params": own, "peak": train.own_adapter_lr, "weight_decay": 0.0, "sgd": True}]

    def penalty(
        self, domains: Sequence[int], images: Sequence[int], phase: Phase
    ) -> torch.Tensor | None:
        """The decay of the step's own domains."""
        alphas = nn.ParameterDict({str(i): site.alpha for i, site in enumerate(self._sites)})
        return squares(self.train_config, [alphas], domains, images)


class MixedOutputs(WeightAdapter):
    """Finished series adapters: P `[O, O]` over the filters of each convolution, `W + P·W`."""

    def __init__(self, matrices: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.names = tuple(matrices)
        self.mixing = nn.ParameterDict(
            {key_of_weight(n): nn.Parameter(m, requires_grad=False) for n, m in matrices.items()}
        )

    def weights(self, shared: Mapping[str, torch.Tensor], domain: int) -> dict[str, torch.Tensor]:
        """`(I + α·diag(s))·f`."""
        return {
            name: weight + torch.einsum("po,o...->p...", self._matrix(name, domain), weight)
            for name in self.names
            for weight in [shared[name]]
        }

    def stored(self, domain: int) -> dict[str, np.ndarray]:
        """The matrices; the shifts are the bank's."""
        return {f"behind:{name}": plain(self._matrix(name, domain)) for name in self.names}

    def matrices(self) -> Mapping[str, SmallMatrices]:
        """Behind each convolution."""
        return {n: SmallMatrices("behind", self.mixing[key_of_weight(n)]) for n in self.names}

    def bits(self) -> int:
        """32 for each number of a matrix, which is as large as α."""
        return NUMBER_BITS * numbers_in(self.mixing)

    def _matrix(self, name: str, domain: int) -> torch.Tensor:
        matrix: torch.Tensor = self.mixing[key_of_weight(name)][domain]
        return matrix


def fold_series(trunk: fx.GraphModule) -> MixedOutputs:
    """Take the sites out of a trunk's graph; BatchNorms take up their shifts, in place."""
    matrices: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for node in [n for n in trunk.graph.nodes if str(n.target).startswith("series.")]:
            site, layer = trunk.get_submodule(str(node.target)), node.args[0]
            assert isinstance(site, SeriesSite) and isinstance(layer, fx.Node)
            matrix, shift = site.folded()
            bias = layer.args[2] if len(layer.args) > 2 else None
            if isinstance(bias, fx.Node):  # z holds it, and the matrix with it
                own = trunk.get_parameter(str(bias.target))
                shift = shift + matrix @ own
            (norm,) = node.users
            trunk.get_submodule(str(norm.target)).get_buffer("running_mean").sub_(shift)
            matrices[str(layer.args[1].target)] = matrix.detach()  # type: ignore[union-attr]
            node.replace_all_uses_with(layer)
            trunk.graph.erase_node(node)
    delattr(trunk, "series")
    trunk.recompile()
    return MixedOutputs(matrices)


def _followed(trunk: fx.GraphModule) -> dict[str, fx.Node]:
    """Convolutions with a BatchNorm behind them and nothing else, by their weights' names.

    One that stands at several places has a single mean, and could not take up several shifts.
    """
    found, nodes = {}, list(trunk.graph.nodes)
    calls = Counter(str(node.target) for node in nodes if node.op == "call_module")
    # The same weight, or mean, may have several names.
    readers: Counter[int] = Counter()
    for node in nodes:
        if node.op == "get_attr":
            readers[id(attrgetter(str(node.target))(trunk))] += len(node.users)
    for node in nodes:
        if op_name(node) != "conv2d":
            continue
        users, weight = list(node.users), node.args[1]
        if len(users) != 1 or not isinstance(weight, fx.Node):
            continue
        norm = str(users[0].target)
        alone = norm.startswith(NORMS) and calls[norm] == 1
        if alone and readers[id(attrgetter(str(weight.target))(trunk))] == 1:
            found[str(weight.target)] = node
    return found
