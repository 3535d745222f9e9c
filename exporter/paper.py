"""Costs counted as the papers count them. They stand beside the physical counts, never in them.

Parameters: 32 bits for every weight, bias, BatchNorm scale and shift, one bit for every switch of
every domain, classifiers left out, relative to the unpruned backbone of one domain. MACs: what
`thop` counts in convolutions, linear layers and BatchNorm; thop gives an affine BatchNorm four
operations per element in evaluation and ignores biases, activations, additions and products.
Poolings, to which thop gives one addition per input and a division per output, are left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from prunion.trainer.network import DomainNet

__all__ = ["norm_operations", "paper_accounts", "paper_bits", "paper_macs"]

NORM_OPERATIONS = 4  # thop's (x - mean) / sqrt(var + eps) · weight + bias


def paper_accounts(net: DomainNet, alive: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """The manifest's `paper`.

    Args:
        alive: units that the exported network keeps, `[U]` bool.
        names: the domains' names, in the order of the network's.
    """
    every = np.ones(net.units.table.count, dtype=bool)
    full_bits, bits = paper_bits(net, every, 1, 0), paper_bits(net, alive, len(names), alive.sum())
    full, union = paper_macs(net, every), paper_macs(net, alive)
    own = (net.switches > 0).cpu().numpy()
    return {
        "bits": {"backbone": full_bits, "exported": bits},
        "params": bits / full_bits,
        "macs": {
            "backbone": full,
            "exported": union,
            "domains": {name: paper_macs(net, own[row]) for row, name in enumerate(names)},
        },
        "flop": union / full,
    }


def paper_bits(net: DomainNet, alive: np.ndarray, domains: int, switches: int) -> int:
    """Bits of a trunk of `alive` units, `domains` BatchNorms and `switches` bits per domain."""
    table, shared = net.units.table, 0
    for name, value in net.trunk.named_parameters():
        if not name.startswith("norms."):
            axes = (len(table.kept(name, a, n, alive)) for a, n in enumerate(value.shape))
            shared += math.prod(axes)
    norms = sum(
        2 * len(table.kept(f"{layer}.running_mean", 0, norm.weight.shape[1], alive))
        for layer, norm in net.norms.items()
    )
    return 32 * (shared + domains * norms) + domains * int(switches)


def paper_macs(net: DomainNet, alive: np.ndarray) -> int:
    """Operations of one image through `alive` `[U]` units, by thop's rules; no classifier."""
    return net.units.table.macs(alive) + norm_operations(net, alive)


def norm_operations(net: DomainNet, alive: np.ndarray) -> int:
    """thop's operations of every BatchNorm."""
    total = 0
    for node in net.trunk.graph.nodes:
        if node.op == "call_module" and str(node.target).startswith("norms."):
            layer = str(node.target).removeprefix("norms.").replace("/", ".")
            _, channels, *area = node.meta["val"].shape
            kept = len(net.units.table.kept(f"{layer}.running_mean", 0, int(channels), alive))
            total += NORM_OPERATIONS * kept * math.prod(int(n) for n in area)
    return total
