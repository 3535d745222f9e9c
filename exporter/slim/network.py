"""The sliced network: only the channels that some domain uses, one bank row per domain."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import fx, nn

from prunion.exporter.slim.graph import sliced_graph
from prunion.exporter.slim.kept import Kept
from prunion.runtime.bundle import AdapterEntry, BankEntry, Layer, UnitTable
from prunion.runtime.graph import ADAPTERS, TABLES
from prunion.trainer.network import DomainNet

__all__ = ["SlimNet", "slim_network"]


class SlimNet(nn.Module):
    """What the exported graph computes, as a torch module.

    Attributes:
        entries: the bank's columns in order.
        bank: `[D, P]`; a buffer like the heads, and with them an input of `forward`, so that a
            taller bank fits too.
        head_weight: `[D, F, Cmax]`.
        head_bias: `[D, Cmax]`, -inf past a domain's classes.
        table: the unit table over the sliced tensors, units renumbered in order.
        used: which of the remaining units each domain uses, `[D, U]` bool.
        adapter_entries: columns of the table of adapters, in order; mostly there are none.
        adapters: that table `[D, A]`.
        slices: which slices of a weight each domain uses, bool `[D, O, I]`; mostly nothing.
    """

    bank: torch.Tensor
    head_weight: torch.Tensor
    head_bias: torch.Tensor
    adapters: torch.Tensor

    def __init__(
        self,
        trunk: fx.GraphModule,
        entries: tuple[BankEntry, ...],
        bank: torch.Tensor,
        head_weight: torch.Tensor,
        head_bias: torch.Tensor,
        table: UnitTable,
        used: np.ndarray,
        adapter_entries: tuple[AdapterEntry, ...],
        adapters: torch.Tensor | None,
        slices: Mapping[str, np.ndarray],
    ) -> None:
        super().__init__()
        self.trunk, self.entries, self.table, self.used = trunk, entries, table, used
        self.register_buffer("bank", bank)
        self.register_buffer("head_weight", head_weight)
        self.register_buffer("head_bias", head_bias)
        self.adapter_entries, self.slices = adapter_entries, slices
        if adapters is not None:
            self.register_buffer("adapters", adapters)

    def forward(
        self,
        image: torch.Tensor,
        domain: torch.Tensor,
        bank: torch.Tensor,
        head_weight: torch.Tensor,
        head_bias: torch.Tensor,
        adapters: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits `[N, Cmax]` of `image` `[N, 3, H, W]` for `domain` `[N]`."""
        rows = bank.index_select(0, domain).unsqueeze(-1).unsqueeze(-1)
        parts = rows.split([entry.size for entry in self.entries], dim=1)
        if adapters is not None:
            own = adapters.index_select(0, domain)
            parts = (*parts, *own.split([entry.size for entry in self.adapter_entries], dim=1))
        features = self.trunk(image, parts)
        weight = head_weight.index_select(0, domain)
        logits = torch.matmul(features.unsqueeze(1), weight).squeeze(1)
        return logits + head_bias.index_select(0, domain)

    def logits(self, image: torch.Tensor, domain: torch.Tensor) -> torch.Tensor:
        """`forward` with the network's own tables."""
        logits: torch.Tensor = self(image, domain, *self.tables.values())
        return logits

    @property
    def tables(self) -> dict[str, torch.Tensor]:
        """The network's own tables by their names, in the order of `forward`."""
        names = (*TABLES, ADAPTERS) if self.adapter_entries else TABLES
        return {name: self.get_buffer(name) for name in names}


def slim_network(net: DomainNet, alive: np.ndarray | None = None) -> SlimNet:
    """Cut every channel that no domain uses out of a masked network.

    Args:
        alive: units to keep instead, `[U]` bool, at least those that some domain uses.

    Raises:
        UnsupportedGraphError: a reshape that mixes channels with positions, naming its node.
    """
    used = np.asarray(net.switches.detach().cpu().numpy() > 0)
    union = np.asarray(used.any(axis=0))
    kept = Kept(net, union if alive is None else union | alive)
    graph, holder = sliced_graph(kept)
    trunk = fx.GraphModule(holder, graph)
    head_weight, head_bias = _heads(kept)
    return SlimNet(
        trunk,
        tuple(kept.entries),
        torch.cat(kept.rows, dim=1),
        head_weight,
        head_bias,
        _sliced_table(kept),
        used[:, kept.alive],
        tuple(kept.adapters),
        torch.cat(kept.adapter_rows, dim=1) if kept.adapters else None,
        kept.slices(),
    ).eval()


def _heads(kept: Kept) -> tuple[torch.Tensor, torch.Tensor]:
    net = kept.net
    stay = torch.from_numpy(kept.channels(net.units.feature_units))
    widest = max(net.classes)
    weight = torch.zeros(len(net.classes), len(stay), widest)
    bias = torch.full((len(net.classes), widest), -torch.inf)
    for d, head in enumerate(net.heads):
        assert isinstance(head, nn.Linear)
        weight[d, :, : head.out_features] = head.weight.detach().cpu().T[stay]
        bias[d, : head.out_features] = head.bias.detach().cpu()
    return weight, bias


def _sliced_table(kept: Kept) -> UnitTable:
    table = kept.table
    # Old unit → its place among those that stay; index -1 finds the last entry, "no unit" again.
    number = np.append(np.cumsum(kept.alive) - 1, -1)
    slots = {}
    for (tensor, axis), units in table.slots.items():
        if not tensor.endswith((".running_mean", ".running_var")) and not _is_norm(kept, tensor):
            slots[tensor, axis] = number[units[kept.channels(units)]]
    slots["bank", 1] = number[np.concatenate(kept.units)]
    layers = tuple(
        Layer(
            x.weight,
            tuple(len(table.kept(x.weight, a, n, kept.alive)) for a, n in enumerate(x.shape)),
            x.positions,
        )
        for x in table.layers
    )
    return UnitTable(int(kept.alive.sum()), slots, layers)


def _is_norm(kept: Kept, tensor: str) -> bool:
    return tensor.rpartition(".")[0] in kept.norms
