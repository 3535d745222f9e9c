"""What a network costs as the papers count it: 32 bits for each number, one for each switch, no
classifiers; operations by thop's rules for convolutions, linear layers and BatchNorm. They are:

- Berriel, Lathuilière, Nabi, Klein, Oliveira-Santos, Sebe and Ricci, "Budget-Aware Adapters for
  Multi-Domain Learning", 2019, arXiv:1905.06242;
- dos Santos, Berriel, Oliveira-Santos, Sebe and Almeida, "Budget-Aware Pruning: Handling Multiple
  Domains with Less Parameters", 2023, arXiv:2309.11464.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from prunion.runtime.bundle import PaperAccount, mean_share
from prunion.trainer.backbone import NORMS, PIXEL_NORM, layer_of_norm
from prunion.trainer.config import TrainConfig
from prunion.trainer.cost.adapter_tables import adapter_numbers
from prunion.trainer.methods import NUMBER_BITS, WeightAdapter
from prunion.trainer.network import DomainNet

__all__ = ["norm_operations", "own_bits", "paper_account", "paper_bits", "paper_macs"]

NORM_OPERATIONS = 4  # thop's (x - mean) / sqrt(var + eps) · weight + bias


def paper_account(
    net: DomainNet,
    alive: np.ndarray,
    names: Sequence[str],
    train: TrainConfig,
    slices: WeightAdapter | None = None,
) -> PaperAccount:
    """The manifest's `paper`, of a network as a bundle holds it.

    Args:
        alive: units that the exported network keeps, `[U]` bool.
        names: the domains' names, in the order of the network's.
        train: whose method says what the domains store: switches, and a BatchNorm each or none.
        slices: the network's adapter as it was before an only domain's weights took the trunk's
            place: what it uses of them is counted, whatever holds the zeros.
    """
    adapter = net.adapter if slices is None else slices
    every = np.ones(net.units.table.count, dtype=bool)
    # The papers' backbone is one domain's network: its own BatchNorm and no switches.
    full_bits = paper_bits(net, every, 1, 0)
    switches = int(alive.sum()) if train.traits.prunes else 0
    bits = paper_bits(net, alive, 1 if train.freezes_norms else len(names), switches)
    if adapter is not None:
        bits += own_bits(net, adapter, alive, len(names))
    full, union = paper_macs(net, every), _used_macs(net, adapter, alive, None)
    own = (net.switches > 0).cpu().numpy()
    domains = {name: _used_macs(net, adapter, own[row], row) for row, name in enumerate(names)}
    return PaperAccount(
        bits_backbone=full_bits,
        bits_exported=bits,
        params=bits / full_bits,
        macs_backbone=full,
        macs_exported=union,
        macs_domains=domains,
        flop=mean_share(domains.values(), full),
        flop_union=union / full,
        method=train.method,
    )


def paper_bits(net: DomainNet, alive: np.ndarray, domains: int, switches: int) -> int:
    """Bits of a trunk of `alive` units, `domains` BatchNorms and `switches` bits per domain."""
    table, shared = net.units.table, 0
    for name, value in net.trunk.named_parameters():
        if not name.startswith(NORMS):
            axes = (len(table.kept(name, a, n, alive)) for a, n in enumerate(value.shape))
            shared += math.prod(axes)
    norms = sum(
        2 * len(table.kept(f"{layer}.running_mean", 0, norm.weight.shape[1], alive))
        for layer, norm in net.norms.items()
        if layer != PIXEL_NORM  # of preprocessing, which no paper counts
    )
    return NUMBER_BITS * (shared + domains * norms) + domains * int(switches)


def own_bits(net: DomainNet, adapter: WeightAdapter, alive: np.ndarray, domains: int) -> int:
    """Bits of what domains have beside the trunk of `alive` units, less its weights in no use.

    Small matrices beside convolutions shrink with these.
    """
    tabled = NUMBER_BITS * domains * adapter_numbers(net, alive)
    unused = NUMBER_BITS * adapter.unused_weights(net.units.table, alive)
    return (tabled or adapter.extra_bits()) - unused


def _used_macs(
    net: DomainNet, adapter: WeightAdapter | None, alive: np.ndarray, row: int | None
) -> int:
    """`paper_macs` of what a domain uses, or all together: of its slices, where these are learned.

    Fewer slices are fewer operations in theory alone, as in the papers.
    """
    positions = {layer.weight: layer.positions for layer in net.units.table.layers}
    used = None if adapter is None else adapter.used_macs(positions, row)
    return paper_macs(net, alive) if used is None else used + norm_operations(net, alive)


def paper_macs(net: DomainNet, alive: np.ndarray) -> int:
    """Operations of one image through `alive` `[U]` units, by thop's rules; no classifier."""
    return net.units.table.macs(alive) + norm_operations(net, alive)


def norm_operations(net: DomainNet, alive: np.ndarray) -> int:
    """thop's operations of every BatchNorm that keeps `alive` `[U]`, for one image."""
    total = 0
    for node in net.trunk.graph.nodes:
        if node.op == "call_module" and str(node.target).startswith(NORMS):
            layer = layer_of_norm(str(node.target))
            if layer == PIXEL_NORM:
                continue
            _, channels, *area = node.meta["val"].shape
            kept = len(net.units.table.kept(f"{layer}.running_mean", 0, int(channels), alive))
            total += NORM_OPERATIONS * kept * math.prod(int(n) for n in area)
    return total
