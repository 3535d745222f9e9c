"""The masked network by its backbone's name, by a model in hand, or by the graph of a file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from prunion.runtime.base import Fields
from prunion.runtime.errors import CheckpointError, ConfigError, UnsupportedGraphError
from prunion.trainer.backbone import PIXEL_NORM, add_pixel_norm, load_backbone, op_name
from prunion.trainer.config import BackboneConfig, RunConfig, TrainConfig
from prunion.trainer.methods import fold_series, make_adapter
from prunion.trainer.network.masked import DomainNet
from prunion.trainer.network.stored_graph import AROUND, graph_from_json
from prunion.trainer.network.unchanged import unchanged

__all__ = [
    "adapt_network",
    "build_network",
    "check_rebuilt",
    "count_as_bundled",
    "fill_trunk",
    "finish_weights",
    "has_norms",
    "merge_weights",
    "rebuild_network",
    "set_normalisation",
]

MOST_AROUND = 2**31  # bytes around a file's tensors


def build_network(
    config: BackboneConfig,
    size: tuple[int, int],
    classes: Sequence[int],
    *,
    weights: bool = True,
    model: nn.Module | None = None,
    own_normalisation: bool = False,
    tuned: bool = True,
) -> DomainNet:
    """The backbone with BatchNorms, switches and a head for each domain.

    Args:
        size: height and width of the images.
        classes: of each domain.
        weights: False leaves the parameters as the library draws them, for a caller with its own,
            of a network that learns no more.
        model: the network itself, in place of the one that `config` names.
        own_normalisation: whether domains have a mean and a deviation of their own, which
            `set_normalisation` gives it.
        tuned: whether its weights will learn, the trunk's or copies of each domain's own.

    Raises:
        ConfigError: unknown name, weights that do not fit, or a `keep` that is no layer.
        UnsupportedGraphError: the network cannot be traced, or its channels not be followed.
    """
    backbone = load_backbone(config, *size, weights=weights, model=model)
    if own_normalisation:
        add_pixel_norm(backbone)
    return DomainNet(backbone, classes, config.keep, tuned=tuned and weights)


def rebuild_network(
    config: BackboneConfig,
    size: tuple[int, int],
    classes: Sequence[int],
    graph: Any,
    source: str,
) -> DomainNet:
    """The network of a file, for a caller that loads its tensors: from its graph, and so no code.

    Args:
        graph: as `DomainNet.graph`; None in the files of an earlier prunion, whose networks are
            made by name once more.
        source: the file, for messages.

    Raises CheckpointError if the graph is damaged, or missing and no library has such a network.
    """
    if graph is not None:
        net = DomainNet(graph_from_json(graph, source), classes, config.keep, empty=True)
        if AROUND in graph:
            fields = Fields(graph, "", source, CheckpointError, "copy the whole folder again")
            net.graph[AROUND] = fields.integer(AROUND, 0, MOST_AROUND)
        return net
    if config.source == "python":
        raise CheckpointError(
            f"{source} is missing, and only a function of the trainer's made the network: copy the "
            "whole folder again"
        )
    return build_network(config, size, classes, weights=False)


def check_rebuilt(net: DomainNet, config: BackboneConfig, size: tuple[int, int]) -> None:
    """Raise UnsupportedGraphError if no checkpoint of the network could be loaded."""
    try:
        again = rebuild_network(config, size, net.classes, net.graph, "the network's graph")
    except CheckpointError as exc:  # there is no folder yet that could be copied again
        raise _unreadable(net.graph["nodes"], f"{exc}") from None
    if again.units.table.to_json() != net.units.table.to_json():
        raise UnsupportedGraphError(
            "the network's channels are laid out differently once its graph is read back from a "
            "checkpoint, which could then not be loaded: this is a fault of prunion's, please "
            "report it; another backbone works meanwhile"
        )


def _unreadable(nodes: Sequence[dict[str, Any]], message: str) -> UnsupportedGraphError:
    place = re.search(r"nodes\[(\d+)\]\S* (.*): ", message)
    entry, reason = (nodes[int(place[1])], place[2]) if place else ({}, message)
    fix = "choose another backbone, or cut it before ([backbone] cut)"
    if str(entry.get("target")).partition(".")[0] in ("index", "masked_select", "nonzero"):
        # Without the mask's values, which a graph does not hold, nobody knows how many it takes.
        fix = "give the numbers of what it takes, x[:, [0, 2]], in place of a mask of booleans"
    return UnsupportedGraphError(
        f"node {entry.get('name', 'of its graph')}: read back from a checkpoint, it {reason}: {fix}"
    )


def adapt_network(net: DomainNet, train: TrainConfig) -> None:
    """Give a network what the run's method adds: an adapter, or BatchNorms that are frozen.

    Raises ConfigError where nothing of it is left to adapt.
    """
    layers, count = net.units.table.layers, len(net.classes)
    net.adapter = make_adapter(train, net.trunk, layers, count, net.units.kept)
    if net.adapter is not None and _reads_along_axis_1(net):
        net.adapter.place(net.units.table, net.units.feature_units)
    for norm in net.norms.values():
        norm.frozen = train.freezes_norms
        norm.requires_grad_(not norm.frozen)


def set_normalisation(net: DomainNet, config: RunConfig) -> None:
    """Have each domain's images normalised by its own mean and deviation, which never learn.

    The images come normalised by `[input]`'s, which a domain without its own keeps.

    Raises ConfigError if a domain has its own and the network was made without.
    """
    norm = net.norms.get(PIXEL_NORM)
    if norm is None:
        if config.own_normalisation:
            name = next(domain.name for domain in config.domains if domain.mean is not None)
            raise ConfigError(
                f"[domains.{name}] mean and std are given, and no domain of the network had its "
                "own: remove them"
            )
        return
    common = [torch.tensor(x, dtype=torch.float64) for x in (config.input.mean, config.input.std)]
    with torch.no_grad():
        norm.weight.fill_(1)
        norm.bias.fill_(0)
        for row, domain in enumerate(config.domains):
            mean, std = (
                torch.tensor(own, dtype=torch.float64) if own is not None else usual
                for own, usual in zip((domain.mean, domain.std), common, strict=True)
            )
            norm.running_mean[row] = (mean - common[0]) / common[1]
            norm.running_var[row] = (std / common[1]) ** 2 - norm.eps
    norm.frozen = True
    norm.requires_grad_(False)


def has_norms(net: DomainNet) -> bool:
    """Whether it has BatchNorm, but for what normalises a domain's images."""
    return bool(net.norms.keys() - {PIXEL_NORM})


def _reads_along_axis_1(net: DomainNet) -> bool:
    """Whether every layer's weight is `[O, I, …]`, as a transposed convolution's is not."""
    layers = {layer.weight for layer in net.units.table.layers}
    nodes = [n for n in net.trunk.graph.nodes if n.op == "get_attr" and n.target in layers]
    return all(op_name(user) in ("conv2d", "linear") for node in nodes for user in node.users)


def finish_weights(net: DomainNet) -> None:
    """Of a method whose parts stand in the trunk's graph: weights take their place, exactly.

    Raises VerificationError if a domain answers otherwise then, as `merge_weights` does.
    """
    if net.adapter is not None and net.adapter.inside:
        with unchanged(net, "putting weights in the place of adapters"):
            net.adapter = fold_series(net.trunk)


def merge_weights(net: DomainNet) -> None:
    """Put an only domain's weights in the place of the trunk's: a network like any other."""
    finish_weights(net)
    if net.adapter is None or len(net.classes) > 1:
        return
    with unchanged(net, "putting the domain's own weights in the place of the trunk's"):
        with torch.no_grad():
            for name, weight in net.own_weights(0).items():
                net.trunk.get_parameter(name).copy_(weight)
        net.adapter = None


def count_as_bundled(net: DomainNet) -> None:
    """Leave a network what a bundle of it holds, to count that.

    Its answers are nobody's then: weights do not take the trunk's place, and nothing is compared.
    """
    if net.adapter is not None and net.adapter.inside:
        net.adapter = fold_series(net.trunk)
    if net.adapter is not None and len(net.classes) == 1 and not net.adapter.slices():
        net.adapter = None


def fill_trunk(net: DomainNet) -> None:
    """Have the trunk hold what a bundle's does, where a method stores W as something else.

    Raises VerificationError if a domain answers otherwise then.
    """
    if net.adapter is None:
        return
    shared = {name: net.trunk.get_parameter(name) for name in net.adapter.names}
    if not (base := net.adapter.base(shared)):
        return
    what = "putting what all domains store in the place of the trunk's weights"
    with unchanged(net, what), torch.no_grad():
        for name, value in base.items():
            net.trunk.get_parameter(name).copy_(value)
