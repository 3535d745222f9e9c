"""Small matrices that an exported graph has in a table of all domains, and how many numbers.

One graph answers a batch of any domains with them; other own weights need a graph for each domain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import fx

from prunion.trainer.backbone import op_name
from prunion.trainer.methods import SmallMatrices, sees_every_position
from prunion.trainer.network import DomainNet

__all__ = ["adapter_numbers", "convolutions", "tabled_adapters"]


def tabled_adapters(net: DomainNet) -> Mapping[str, SmallMatrices]:
    """What all of a method's own weights amount to, by the weight of each convolution.

    Nothing where a domain needs a graph of its own.
    """
    found = {} if net.adapter is None else net.adapter.matrices()
    layers = convolutions(net.trunk)
    fit = (
        _fits(layers.get(name, ()), small, net.trunk.get_parameter(name).shape[2:])
        for name, small in found.items()
    )
    return found if all(fit) else {}


def adapter_numbers(net: DomainNet, alive: np.ndarray) -> int:
    """Numbers of one domain in the table of a network that keeps `alive` `[U]`."""
    total, table = 0, net.units.table
    for name, small in tabled_adapters(net).items():
        shape = net.trunk.get_parameter(name).shape
        out, read = (len(table.kept(name, axis, shape[axis], alive)) for axis in (0, 1))
        read = out if small.kind == "behind" else read
        total += out * read if small.down is None else small.down.shape[1] * (out + read)
    return total


def convolutions(trunk: fx.GraphModule) -> dict[str, list[fx.Node]]:
    """The convolutions of a trunk by the weight that they read."""
    found: dict[str, list[fx.Node]] = {}
    for node in trunk.graph.nodes:
        if op_name(node) == "conv2d" and isinstance(node.args[1], fx.Node):
            found.setdefault(str(node.args[1].target), []).append(node)
    return found


def _fits(nodes: Sequence[fx.Node], small: SmallMatrices, kernel: Sequence[int]) -> bool:
    """One convolution reads the weight; α sees what the kernel's centre does, P has no bias."""
    if len(nodes) != 1:
        return False
    if small.kind == "beside":
        return sees_every_position(nodes[0], kernel)
    return len(nodes[0].args) < 3 or nodes[0].args[2] is None
