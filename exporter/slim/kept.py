"""What stays of a network: some of its domains, the channels they use, and their bank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from prunion.runtime.base import listed
from prunion.runtime.bundle import AdapterEntry, BankEntry
from prunion.runtime.errors import DomainError, UnsupportedGraphError
from prunion.trainer.methods import SmallMatrices
from prunion.trainer.network import Checkpoint, DomainNet, DomainNorm

__all__ = [
    "Kept",
    "keep_domains",
    "keep_rows",
    "kept_units",
]


class Kept:
    """The units that stay (`alive` `[U]` bool), and the bank as it grows layer by layer.

    Attributes:
        net: the masked network, which is left as it is.
        table: its unit table.
        entries: the bank's columns so far, in order.
        rows: their values, `[D, C]` each.
        units: the unit of every column, -1 for one that always stays, `[C]` each.
        places: where the columns of each norm begin among the entries.
        adapters, adapter_rows: the same of the table of adapters; no unit owns its columns.
    """

    def __init__(self, net: DomainNet, alive: np.ndarray) -> None:
        self.net, self.alive, self.table = net, alive, net.units.table
        self.norms = net.norms  # a property that looks them all up at every use
        self.places: dict[str, int] = {}
        self.entries: list[BankEntry] = []
        self.rows: list[torch.Tensor] = []
        self.units: list[np.ndarray] = []
        self.adapters: list[AdapterEntry] = []
        self.adapter_rows: list[torch.Tensor] = []

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

    def add_norm(self, layer: str) -> int:
        """Append a norm's scale, and its shift behind it; returns the place of the scale.

        Wherever else the norm is called, it reads the same columns.
        """
        if layer not in self.places:
            units = self.table.slots[f"{layer}.running_mean", 0]
            stay = self.channels(units)
            gate = self.gate(units)[:, stay]
            scale, shift = self.norms[layer].affine()
            first = self.add(layer, "scale", scale[:, stay] * gate, units[stay])
            self.add(layer, "shift", shift[:, stay] * gate, units[stay])
            self.places[layer] = first
        return self.places[layer]

    def slices(self) -> dict[str, np.ndarray]:
        """Which slices each domain uses of the weights that stay, bool `[D, O, I]`."""
        found = {} if self.net.adapter is None else self.net.adapter.slices()
        kept = {}
        for name, bits in found.items():
            array = bits.cpu().numpy()
            for axis in (0, 1):
                stay = self.table.kept(name, axis, array.shape[1 + axis], self.alive)
                array = array.take(stay, 1 + axis)
            kept[name] = array
        return kept

    def add_adapter(self, weight: str, small: SmallMatrices) -> int:
        """Append what stays of a convolution's adapters; returns their place among all."""
        shape = self.net.trunk.get_parameter(weight).shape
        out, read = (
            torch.from_numpy(self.table.kept(weight, axis, shape[axis], self.alive))
            for axis in (0, 1)
        )
        if small.kind == "behind":
            if len(out) < shape[0]:  # it reads channels before their gate, where they are not 0
                raise UnsupportedGraphError(
                    f"{weight}: adapters behind a convolution need all of its channels, and some "
                    "are cut: please report this run as a bug"
                )
            read = out
        if small.whole is not None:
            parts = [small.whole.detach().cpu()[:, out][:, :, read]]
        else:
            assert small.down is not None and small.up is not None
            parts = [small.down.detach().cpu()[:, :, read], small.up.detach().cpu()[:, out]]
        rank = 0 if small.whole is not None else parts[0].shape[1]
        offset = sum(entry.size for entry in self.adapters)
        entry = AdapterEntry(weight, small.kind, len(out), len(read), rank, offset)
        self.adapters.append(entry)
        self.adapter_rows.append(torch.cat([part.flatten(1) for part in parts], dim=1).float())
        return len(self.adapters) - 1


def keep_domains(loaded: Checkpoint, names: Sequence[str]) -> Checkpoint:
    """Leave out every other domain (its BatchNorm, switches and head), in the order of `names`.

    The network is changed in place. Raises DomainError naming what there is.
    """
    rows = torch.tensor([_row(loaded, name) for name in names])
    if len(set(names)) != len(names):
        raise DomainError(f"{', '.join(names)}: a domain is named twice; name each once")
    keep_rows(loaded.net, rows)
    configs = tuple(loaded.config.domains[row] for row in rows)
    meta = {**loaded.meta, "domains": [loaded.meta["domains"][row] for row in rows]}
    return replace(loaded, config=replace(loaded.config, domains=configs), meta=meta)


def keep_rows(net: DomainNet, rows: torch.Tensor) -> None:
    """Leave out every domain but those in `rows`, in this order and in place.

    What a method gave the others of their own weights leaves with them.
    """
    for norm in net.norms.values():
        _keep_rows(norm, rows)
    if net.adapter is not None:
        net.adapter.keep_rows(rows)
    net.switches = net.switches[rows]
    net.heads = nn.ModuleList(net.heads[row] for row in rows.tolist())
    net.classes = tuple(net.classes[row] for row in rows)


def kept_units(loaded: Checkpoint, everyone: torch.Tensor) -> np.ndarray:
    """Units the sliced network keeps, `[U]` bool: its domains' union, widths rounded up.

    The channels that come back are those that most domains of the whole checkpoint use; no domain
    here does, so they are exact zeros.

    Args:
        everyone: switches of every domain of the checkpoint, `[D, U]`.
    """
    union = np.asarray((loaded.net.switches > 0).any(0).cpu().numpy())
    votes = (everyone > 0).sum(0).cpu().numpy()
    return loaded.net.units.table.round_up(union, loaded.config.budget.round_to, votes)


def _row(loaded: Checkpoint, name: str) -> int:
    known = [domain["name"] for domain in loaded.meta["domains"]]
    if name not in known:
        raise DomainError(f"the checkpoint has no domain {name!r}: it has {listed(known)}")
    return known.index(name)


def _keep_rows(norm: DomainNorm, rows: torch.Tensor) -> None:
    norm.weight = nn.Parameter(norm.weight.detach()[rows])
    norm.bias = nn.Parameter(norm.bias.detach()[rows])
    norm.running_mean, norm.running_var = norm.running_mean[rows], norm.running_var[rows]
