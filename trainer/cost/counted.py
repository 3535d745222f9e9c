"""What a union of channel units costs, differentiably, in the exporter's own units."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from prunion.runtime.bundle.unit_table import UnitTable
from prunion.trainer.cost.latency import LatencyModel, LatencyTable

__all__ = ["Cost", "CostModel", "cost_model"]

Cost = Callable[[torch.Tensor], torch.Tensor]  # how much of each unit is kept → share of the cost


def cost_model(table: UnitTable | LatencyTable, kind: str) -> CostModel | LatencyModel:
    """The differentiable cost of a `priced_table`; both kinds are called alike."""
    return LatencyModel(table) if isinstance(table, LatencyTable) else CostModel(table, kind)


class CostModel(nn.Module):
    """Σ over layers of k²·|in|·|out|/groups (times output positions for MACs).

    Called with how much of every unit is kept, `[U]` in 0 … 1, it gives the share of the full
    trunk's cost. On 0/1 values it equals `UnitTable.params` or `.macs` over the full count.
    """

    axis: torch.Tensor
    unit: torch.Tensor
    times: torch.Tensor
    fixed: torch.Tensor
    pairs: torch.Tensor
    scale: torch.Tensor

    def __init__(self, table: UnitTable, kind: str) -> None:
        super().__init__()
        places: list[torch.Tensor] = []  # rows of (axis, unit, times it appears there)
        fixed: list[float] = []
        pairs, scales = [], []
        for layer in table.layers:
            rest, pair = 1.0, []
            for axis, size in enumerate(layer.shape):
                units = table.slots.get((layer.weight, axis))
                if units is None:
                    rest *= size
                    continue
                found, times = np.unique(units[units >= 0], return_counts=True)
                number = np.full_like(found, len(fixed))
                places.append(torch.from_numpy(np.stack([number, found, times])))
                pair.append(len(fixed))
                fixed.append(float((units < 0).sum()))
            pairs.append(pair)
            scales.append(rest * (1 if kind == "params" else layer.positions))
        # One more axis of constant 1 stands in where a layer is cut along one axis only.
        fixed.append(1.0)
        filled = [(*p, *([len(fixed) - 1] * (2 - len(p)))) for p in pairs]
        axis_of, unit, count = torch.cat(places, dim=1)
        self.register_buffer("axis", axis_of, persistent=False)
        self.register_buffer("unit", unit, persistent=False)
        self.register_buffer("times", count.double(), persistent=False)
        self.register_buffer("fixed", torch.tensor(fixed, dtype=torch.float64), persistent=False)
        self.register_buffer("pairs", torch.tensor(filled), persistent=False)
        scale = torch.tensor(scales, dtype=torch.float64)
        self.register_buffer("scale", scale, persistent=False)
        with torch.no_grad():
            full = self.absolute(torch.ones(table.count, dtype=torch.float64))
        self.full = float(full)

    def absolute(self, kept: torch.Tensor) -> torch.Tensor:
        """Weights or MACs of keeping `kept` `[U]`."""
        widths = self.fixed.index_add(0, self.axis, kept.double()[self.unit] * self.times)
        a, b = widths[self.pairs[:, 0]], widths[self.pairs[:, 1]]
        return (self.scale * a * b).sum()

    def forward(self, kept: torch.Tensor) -> torch.Tensor:
        """Share of the full trunk's cost, a scalar."""
        return self.absolute(kept) / self.full
