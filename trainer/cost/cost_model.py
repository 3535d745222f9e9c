"""The differentiable side of a price: what training descends along."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

__all__ = ["Cost", "CostModel"]

Cost = Callable[[torch.Tensor], torch.Tensor]  # how much of each unit is kept → share of the cost


class CostModel(nn.Module):
    """The share of the full cost as a differentiable function of the units that are kept.

    Called with how much of every unit is kept, `[U]` in 0 … 1, it gives a scalar. On 0/1 values
    that is `Pricer.of` over `Pricer.full`.
    """

    axis: torch.Tensor
    unit: torch.Tensor
    times: torch.Tensor
    fixed: torch.Tensor

    def __init__(self, axes: Sequence[np.ndarray], full: float) -> None:
        """`axes`: of each axis that has a width, the unit of every index, -1 = never removed."""
        super().__init__()
        rows = [np.zeros((3, 0), dtype=np.int64)]  # axis, unit, how often it lies there
        for number, units in enumerate(axes):
            found, times = np.unique(units[units >= 0], return_counts=True)
            rows.append(np.stack([np.full_like(found, number), found, times]))
        axis, unit, times = torch.from_numpy(np.concatenate(rows, axis=1))
        fixed = torch.tensor([float((units < 0).sum()) for units in axes], dtype=torch.float64)
        self.register_buffer("axis", axis, persistent=False)
        self.register_buffer("unit", unit, persistent=False)
        self.register_buffer("times", times.double(), persistent=False)
        self.register_buffer("fixed", fixed, persistent=False)
        self.full = float(full)

    def widths(self, kept: torch.Tensor) -> torch.Tensor:
        """How many channels of each axis are left, float64."""
        return self.fixed.index_add(0, self.axis, kept.double()[self.unit] * self.times)

    def absolute(self, kept: torch.Tensor) -> torch.Tensor:
        """The cost of keeping `kept` `[U]` in the pricer's own unit."""
        raise NotImplementedError

    def forward(self, kept: torch.Tensor) -> torch.Tensor:
        """Share of the full cost, a scalar."""
        return self.absolute(kept) / self.full
