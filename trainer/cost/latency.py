"""Costs that are predicted: milliseconds on a device, by the profile that was measured on it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from prunion.runtime.bundle import Profile, UnitTable, read_profile
from prunion.runtime.errors import BudgetError
from prunion.trainer.cost.cost_model import CostModel

__all__ = ["LatencyModel", "LatencyPricer", "latency_pricer", "profile_doubts", "profile_note"]

TRUSTED = 0.10  # how far off a profile may predict before a run is told
LEAST_MS = 1e-6  # of a whole network; a nanosecond is no measurement
SLACK = 0.01
AGAIN = "measure it again with `prunion profile`"


@dataclass(frozen=True, eq=False)
class LatencyPricer:
    """A network's units and the device profile that prices them, in milliseconds."""

    units: UnitTable
    profile: Profile

    @property
    def kind(self) -> Literal["latency"]:
        """Always `latency`."""
        return "latency"

    @property
    def full(self) -> float:
        """The whole network's time."""
        return self.of(np.ones(self.units.count, dtype=bool))

    @property
    def backbone(self) -> float:
        """What a share is a share of: the whole network's time."""
        return self.full

    def of(self, alive: np.ndarray) -> float:
        """Time of keeping `alive` `[U]` bool, by the profile."""
        return self.profile.milliseconds(self.units, alive)

    def cost_model(self) -> LatencyModel:
        """The same, differentiable."""
        return LatencyModel(self)


def latency_pricer(path: Path | str, units: UnitTable) -> LatencyPricer:
    """Read a profile for a network.

    Raises BudgetError if it is damaged, contradicts itself, is of another network or of no time.
    """
    profile = read_profile(path)
    _check_samples(profile, path)
    profile.check(units.layers, str(path))
    for layer in units.layers:
        grid = profile.grid(layer.weight)
        for axis, widths in enumerate((grid.out, grid.inside)):
            stride = units.stride(layer.weight, axis)
            if stride and len(widths) == 1 and widths[0] > stride * profile.round_to:
                raise BudgetError(
                    f"{path}: {layer.weight} was measured at one width, as [backbone] keep leaves "
                    "it, and this run may cut it: measure this run's network with `prunion profile`"
                )
    pricer = LatencyPricer(units, profile)
    if not pricer.full >= LEAST_MS:
        raise BudgetError(f"{path} says that the network takes {pricer.full:g} ms: {AGAIN}")
    return pricer


def profile_doubts(profile: Profile, size: tuple[int, int]) -> Iterator[str]:
    """What a run on images of `size` `(H, W)` should know of the profile that prices it."""
    if profile.fit.worst_error > TRUSTED:
        yield (
            f"the profile was off by {profile.fit.worst_error:.0%} on networks that were measured "
            f"({profile.fit.mean_error:.0%} on average), so the milliseconds may be, too: {AGAIN}, "
            "while the machine is quiet"
        )
    if profile.size != size:
        measured, own = (f"{height}x{width}" for height, width in (profile.size, size))
        yield f"the profile was measured on images of {measured}, this run's are {own}: {AGAIN}"


def profile_note(profile: Profile) -> str:
    """What tells a profile from every other, and its device: the whole's price may be the same."""
    text = json.dumps(profile.to_json(), sort_keys=True)
    return f"{hashlib.sha256(text.encode()).hexdigest()[:16]} of {profile.describe()}"


def _check_samples(profile: Profile, path: Path | str) -> None:
    """The networks behind the fit are no further off than it says; left out, each is further."""
    fit, worst = profile.fit, 0.0
    for predicted, measured in profile.samples:
        worst = max(worst, abs(predicted - measured) / max(measured, LEAST_MS))
    if worst > SLACK + 2 * fit.worst_error or fit.mean_error > fit.worst_error + SLACK:
        raise BudgetError(
            f"{path}: fit.worst_error is {fit.worst_error:.3g}, and of its samples one is off by "
            f"{worst:.3g} and their mean by {fit.mean_error:.3g}: {AGAIN}"
        )


class LatencyModel(CostModel):
    """`scale · Σ over layers of the bilinear interpolation over its widths + constant`.

    The gradient at a measured width is that of the interval below: what removing a channel saves.
    """

    points: torch.Tensor
    ms: torch.Tensor

    def __init__(self, pricer: LatencyPricer) -> None:
        axes: list[np.ndarray] = []  # outputs and inputs of each layer in turn
        grids = []
        for layer in pricer.units.layers:
            grids.append(pricer.profile.grid(layer.weight))
            for axis, size in enumerate(layer.shape[:2]):
                units = pricer.units.slots.get((layer.weight, axis))
                axes.append(np.full(size, -1) if units is None else units)
        super().__init__(axes, pricer.full)
        longest = max(2, *(len(axis) for grid in grids for axis in (grid.out, grid.inside)))
        points = [_longer(axis, longest) for grid in grids for axis in (grid.out, grid.inside)]
        ms = [
            np.pad(g.ms, [(0, longest - size) for size in g.ms.shape], mode="edge") for g in grids
        ]
        self.register_buffer("points", torch.from_numpy(np.stack(points)), persistent=False)
        self.register_buffer("ms", torch.from_numpy(np.stack(ms)), persistent=False)
        self.fit = pricer.profile.fit

    def absolute(self, kept: torch.Tensor) -> torch.Tensor:
        """Milliseconds of keeping `kept` `[U]`."""
        widths = self.widths(kept)
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


def _longer(widths: tuple[int, ...], length: int) -> np.ndarray:
    """The widths, and some past the last one up to `length`; nothing is ever that wide."""
    more = widths[-1] + 1.0 + np.arange(length - len(widths))
    return np.concatenate([np.array(widths, dtype=np.float64), more])
