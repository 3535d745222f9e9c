"""What stays of a masked network: its channels, and the bank of per-domain scales and shifts."""

from __future__ import annotations

import numpy as np
import torch

from prunion.runtime.bundle.manifest import BankEntry
from prunion.trainer.network.masked import DomainNet

__all__ = ["Kept"]


class Kept:
    """The units that stay (`alive` `[U]` bool), and the bank as it grows layer by layer.

    Attributes:
        net: the masked network, which is left as it is.
        table: its unit table.
        entries: the bank's columns so far, in order.
        rows: their values, `[D, C]` each.
        units: the unit of every column, -1 for one that always stays, `[C]` each.
    """

    def __init__(self, net: DomainNet, alive: np.ndarray) -> None:
        self.net, self.alive, self.table = net, alive, net.units.table
        self.norms = net.norms  # a property that looks them all up at every use
        self.entries: list[BankEntry] = []
        self.rows: list[torch.Tensor] = []
        self.units: list[np.ndarray] = []

    def channels(self, units: np.ndarray) -> np.ndarray:
        """Indices that stay of channels laid out by `units` (-1, the last entry: always)."""
        return np.flatnonzero(np.append(self.alive, True)[units])

    def gate(self, units: np.ndarray) -> torch.Tensor:
        """Switches of channels `units`, `[D, C]`, 1 where there is no switch."""
        # A column of ones at the end is what the index -1 of a channel without a unit finds.
        switches = self.net.switches.detach()
        ones = switches.new_ones(len(switches), 1)
        return torch.cat([switches, ones], dim=1)[:, torch.from_numpy(units)]

    def add(self, layer: str, kind: str, rows: torch.Tensor, units: np.ndarray) -> int:
        """Append columns `[D, C]` to the bank and return their position among its parts."""
        offset = sum(entry.size for entry in self.entries)
        self.entries.append(BankEntry(layer, kind, offset, rows.shape[1]))
        self.rows.append(rows.detach())
        self.units.append(units)
        return len(self.entries) - 1
