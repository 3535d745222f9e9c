"""What a union of channel units costs in milliseconds on a profiled device, differentiably."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from prunion.runtime.bundle.profile import Profile, read_profile
from prunion.runtime.bundle.unit_table import UnitTable
from prunion.runtime.errors import BudgetError

__all__ = ["LatencyModel", "LatencyTable", "latency_table"]


@dataclass(frozen=True, eq=False)
class LatencyTable:
    """A unit table and the profile that prices it; stands where a `priced_table` is wanted."""

    units: UnitTable
    profile: Profile

    @property
    def count(self) -> int:
        """U, the number of units."""
        return self.units.count

    def milliseconds(self, alive: np.ndarray) -> float:
        """Time of keeping `alive` `[U]` bool, by the profile."""
        return self.profile.milliseconds(self.units, alive)


def latency_table(path: Path | str, units: UnitTable) -> LatencyTable:
    """Read a profile for a network. Raises BudgetError if it is damaged or of another network."""
    profile = read_profile(path)
    profile.check(units.layers, str(path))
    for layer in units.layers:
        grid = profile.grid(layer.weight)
        for axis, widths in enumerate((grid.out, grid.inside)):
            cut = units.slots.get((layer.weight, axis), np.empty(0)).max(initial=-1) >= 0
            if cut and len(widths) == 1 and widths[0] > profile.round_to:
                raise BudgetError(
                    f"{path}: {layer.weight} was measured at one width, as [backbone] keep leaves "
                    "it, and this run may cut it: measure this run's network with `prunion profile`"
                )
    return LatencyTable(units, profile)


class LatencyModel(nn.Module):
    """`scale · Σ over layers of the bilinear interpolation over its widths + constant`.

    Called with how much of every unit is kept, `[U]` in 0 … 1, it gives the share of the full
    network's time. On 0/1 values it equals `LatencyTable.milliseconds` over the full time. Its
    gradient at a measured width is that of the interval below: what removing a channel saves.
    """

    axis: torch.Tensor
    unit: torch.Tensor
    times: torch.Tensor
    fixed: torch.Tensor
    points: torch.Tensor
    ms: torch.Tensor

    def __init__(self, table: LatencyTable) -> None:
        super().__init__()
        places: list[np.ndarray] = [np.zeros((3, 0), dtype=np.int64)]
        fixed: list[float] = []  # [2 L]: axis 0 and axis 1 of each layer in turn
        grids = []
        for layer in table.units.layers:
            grids.append(table.profile.grid(layer.weight))
            for axis, size in enumerate(layer.shape[:2]):
                units = table.units.slots.get((layer.weight, axis))
                units = np.full(size, -1) if units is None else units
                found, times = np.unique(units[units >= 0], return_counts=True)
                places.append(np.stack([np.full_like(found, len(fixed)), found, times]))
                fixed.append(float((units < 0).sum()))
        axis_of, unit, count = torch.from_numpy(np.concatenate(places, axis=1))
        longest = max(2, *(len(axis) for grid in grids for axis in (grid.out, grid.inside)))
        points = [_longer(axis, longest) for grid in grids for axis in (grid.out, grid.inside)]
        ms = [
            np.pad(g.ms, [(0, longest - size) for size in g.ms.shape], mode="edge") for g in grids
        ]
        self.register_buffer("axis", axis_of, persistent=False)
        self.register_buffer("unit", unit, persistent=False)
        self.register_buffer("times", count.double(), persistent=False)
        self.register_buffer("fixed", torch.tensor(fixed, dtype=torch.float64), persistent=False)
        self.register_buffer("points", torch.from_numpy(np.stack(points)), persistent=False)
        self.register_buffer("ms", torch.from_numpy(np.stack(ms)), persistent=False)
        self.fit = table.profile.fit
        self.full = table.milliseconds(np.ones(table.count, dtype=bool))

    def absolute(self, kept: torch.Tensor) -> torch.Tensor:
        """Milliseconds of keeping `kept` `[U]`."""
        widths = self.fixed.index_add(0, self.axis, kept.double()[self.unit] * self.times)
        last = self.points.shape[1] - 1
        upper = torch.searchsorted(self.points, widths.detach()[:, None].contiguous())
        upper = upper.clamp(1, last)
        low, high = (self.points.gather(1, i)[:, 0] for i in (upper - 1, upper))
        part = (widths - low) / (high - low)
        # Flat below the first width; unlike `clamp` this keeps the slope at its edge.
        part = torch.where(part < 0, 0.0, part)
        (o, i), (a, b) = (x.view(-1, 2).unbind(1) for x in (upper[:, 0], part))
        row = torch.arange(len(self.ms), device=o.device)
        below = torch.lerp(self.ms[row, o - 1, i - 1], self.ms[row, o - 1, i], b)
        above = torch.lerp(self.ms[row, o, i - 1], self.ms[row, o, i], b)
        return self.fit.scale * torch.lerp(below, above, a).sum() + self.fit.constant

    def forward(self, kept: torch.Tensor) -> torch.Tensor:
        """Share of the full network's time, a scalar."""
        return self.absolute(kept) / self.full


def _longer(widths: tuple[int, ...], length: int) -> np.ndarray:
    """The widths, and some past the last one up to `length`; nothing is ever that wide."""
    more = widths[-1] + 1.0 + np.arange(length - len(widths))
    return np.concatenate([np.array(widths, dtype=np.float64), more])
