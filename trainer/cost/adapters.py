"""What small matrices beside convolutions cost, as a budget counts them with the channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from prunion.trainer.cost.adapter_tables import tabled_adapters
from prunion.trainer.network import DomainNet

__all__ = ["AdapterCost", "adapter_costs"]

OUT, IN = 0, 1  # axes of a convolution's weight


@dataclass(frozen=True)
class AdapterCost:
    """The adapters of one convolution: they shrink with its channels.

    Attributes:
        weight, shape: the convolution's.
        positions: that its result has for an image.
        domains: how many have a row.
        parts: of each matrix the axes of the weight that it has, and how often it is there.
    """

    weight: str
    shape: tuple[int, ...]
    positions: int
    domains: int
    parts: Mapping[str, tuple[tuple[int, ...], int]]


def adapter_costs(net: DomainNet) -> list[AdapterCost]:
    """Of each convolution whose adapters the exported graph holds; other own weights lie in packs.

    Args:
        net: as a bundle holds it (`count_as_bundled`).
    """
    layers = {layer.weight: layer for layer in net.units.table.layers}
    found = []
    for name, small in tabled_adapters(net).items():
        parts: dict[str, tuple[tuple[int, ...], int]]
        if small.down is not None:
            rank = small.down.shape[1]
            parts = {"down": ((IN,), rank), "up": ((OUT,), rank)}
        elif small.kind == "beside":
            parts = {"beside": ((OUT, IN), 1)}
        else:
            parts = {"behind": ((OUT, OUT), 1)}
        layer = layers[name]
        cost = AdapterCost(name, layer.shape, layer.positions, len(net.classes), parts)
        found.append(cost)
    return found
