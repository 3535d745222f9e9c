"""What stays of a masked network, and the bank of per-domain scales and shifts."""

from __future__ import annotations

import numpy as np
import torch

from prunion.runtime.manifest import BankEntry
from prunion.trainer.network import DomainNet

__all__ = ["Cut"]


class Cut:
    """What stays, and the bank as it grows."""

    def __init__(self, net: DomainNet, alive: np.ndarray) -> None:
        self.alive = alive
        self.table = net.units.table
        self.switches = net.switches.detach()
        self.norms = net.norms  # made anew at every look
        self.entries: list[BankEntry] = []
        self.rows: list[torch.Tensor] = []
        self.units: list[np.ndarray] = []  # unit of every bank column

    def channels(self, units: np.ndarray) -> np.ndarray:
        """Indices that stay of channels laid out by `units` (-1 = always)."""
        return np.flatnonzero(np.append(self.alive, True)[units])

    def gate(self, units: np.ndarray) -> torch.Tensor:
        """Switches of channels `units`, `[D, C]`, 1 where there is no switch."""
        ones = self.switches.new_ones(len(self.switches), 1)
        return torch.cat([self.switches, ones], dim=1)[:, torch.from_numpy(units)]

    def add(self, layer: str, kind: str, rows: torch.Tensor, units: np.ndarray) -> int:
        """Append columns `[D, C]` to the bank and return their position among its parts."""
        offset = sum(entry.size for entry in self.entries)
        self.entries.append(BankEntry(layer, kind, offset, rows.shape[1]))
        self.rows.append(rows.detach())
        self.units.append(units)
        return len(self.entries) - 1
