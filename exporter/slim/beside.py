"""Each domain's small matrices beside or behind the sliced trunk's convolutions.

`y_n = f∗x_n + α[domain_n]∗x_n` is one product of matrices for each image, so a batch may mix
domains. The table of all domains' matrices has a row each, like the bank.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import fx, nn

from prunion.exporter.slim.kept import Kept
from prunion.runtime.bundle import AdapterEntry
from prunion.trainer.cost import convolutions, tabled_adapters
from prunion.trainer.methods import pair

__all__ = ["Beside", "insert_adapters"]


class Beside(nn.Module):
    """`y + α∗x`, or `y + P·y`, with the rows of the batch's own domains."""

    def __init__(self, place: int, entry: AdapterEntry, stride: tuple[int, int], size: int) -> None:
        """The matrices are part `place` of a forward pass; `size` positions are given out."""
        super().__init__()
        self.place, self.entry, self.stride, self.size = place, entry, stride, size

    def forward(
        self, y: torch.Tensor, x: torch.Tensor, parts: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """`[N, O, H, W]` from the convolution's result and what it read, `[N, I, …]`."""
        rows, entry = parts[self.place], self.entry
        x = y if entry.kind == "behind" else x
        if self.stride != (1, 1):
            x = x[:, :, :: self.stride[0], :: self.stride[1]]
        x = x.reshape(-1, entry.inputs, self.size)
        if entry.rank:
            down, up = rows.split([entry.rank * entry.inputs, entry.outputs * entry.rank], dim=1)
            x = down.reshape(-1, entry.rank, entry.inputs) @ x
            x = up.reshape(-1, entry.outputs, entry.rank) @ x
        else:
            x = rows.reshape(-1, entry.outputs, entry.inputs) @ x
        return y + x.reshape(-1, *y.shape[1:])


def insert_adapters(
    graph: fx.Graph, copies: Mapping[fx.Node, fx.Node], kept: Kept
) -> tuple[nn.ModuleDict, dict[fx.Node, fx.Node]]:
    """Put the adapters of a network into the sliced copy of its graph.

    Args:
        copies: the nodes of `graph` by those of the network's.

    Returns:
        The modules, by the last part of their targets `beside.KEY`, and what stands for each
        convolution now.
    """
    modules, replaced = nn.ModuleDict(), dict[fx.Node, fx.Node]()
    found = tabled_adapters(kept.net)
    parts = [n for n in graph.nodes if n.op == "placeholder"][1]
    layers = convolutions(kept.net.trunk)
    for name, small in found.items():
        (old,) = layers[name]
        node, key = copies[old], name.replace(".", "/")
        number = kept.add_adapter(name, small)
        area = old.meta["val"].shape[2:]
        stride = (1, 1) if small.kind == "behind" else pair(old.args[3] if len(old.args) > 3 else 1)
        # Counted from the end: the bank's parts come before, and are not known yet.
        modules[key] = Beside(
            number - len(found), kept.adapters[number], stride, int(np.prod(area))
        )
        with graph.inserting_after(node):
            new = graph.call_module(f"beside.{key}", (node, node.args[0], parts))
        node.replace_all_uses_with(new, delete_user_cb=partial(operator.is_not, new))
        new.meta = dict(node.meta)
        replaced[node] = new
    return modules, replaced
