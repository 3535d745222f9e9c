"""A device profile: milliseconds of every layer over its widths, as `prunion profile` writes it.

Layers are timed alone, each over a grid of widths. What they cost together inside a network is
fitted to whole networks that were timed: `scale · Σ layers + constant`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prunion.runtime.base import Fields, Seen, is_number, is_whole, on_cpu, read_json, write_json
from prunion.runtime.bundle.unit_table import Layer, UnitTable
from prunion.runtime.errors import BudgetError, PrunionError

__all__ = [
    "Fit",
    "Grid",
    "Profile",
    "fit_total",
    "monotone",
    "no_profile",
    "read_profile",
    "write_profile",
]

FORMAT_VERSION = 1
FIX = "write it again with `prunion profile`"
MAX_LAYERS = 10_000
MAX_POINTS = 64  # of an axis
MAX_WIDTH = 1 << 20
MAX_MS = 1e6


@dataclass(frozen=True, eq=False)
class Profile:
    """One network on one device.

    Attributes:
        network: the bundle's name; `size` is its images' `(H, W)`.
        provider: what really answered.
        round_to: the widths of the grids are multiples of this.
        layers: each layer with the number of its grid, by its weight's name.
        machine: what it was measured on, for the reader.
        samples: `(predicted, measured)` ms of the whole networks behind `fit`.
    """

    network: str
    size: tuple[int, int]
    backend: str
    provider: str
    batch: int
    threads: int
    round_to: int
    machine: Mapping[str, Any]
    layers: Mapping[str, tuple[Layer, int]]
    grids: tuple[Grid, ...]
    fit: Fit
    samples: tuple[tuple[float, float], ...] = ()

    def grid(self, weight: str) -> Grid:
        """The grid of one layer."""
        return self.grids[self.layers[weight][1]]

    def milliseconds(self, table: UnitTable, alive: np.ndarray) -> float:
        """Predicted time of keeping `alive` `[U]` bool of a table that `check` accepts."""
        total = 0.0
        for layer in table.layers:
            widths = [
                len(table.kept(layer.weight, axis, size, alive))
                for axis, size in enumerate(layer.shape[:2])
            ]
            total += self.grid(layer.weight).at(*widths)
        return self.fit.scale * total + self.fit.constant

    def check(self, layers: tuple[Layer, ...], where: str = "the profile") -> None:
        """Raise BudgetError unless exactly these layers were measured."""
        fix = "measure this run's network with `prunion profile`"
        known = {layer.weight for layer in layers}
        for layer in layers:
            if layer.weight not in self.layers:
                raise BudgetError(f"{where} has no layer {layer.weight}: {fix}")
            own = self.layers[layer.weight][0]
            if own != layer:
                raise BudgetError(
                    f"{where} is of another network: {layer.weight} is {list(own.shape)} at "
                    f"{own.positions} positions there, {list(layer.shape)} at {layer.positions} "
                    f"here: {fix}"
                )
        for weight in self.layers:
            if weight not in known:
                raise BudgetError(f"{where} has a layer {weight} that the network lacks: {fix}")

    def describe(self) -> str:
        """The device in a few words."""
        what = f"{self.provider}, batch {self.batch}, {self.threads} threads"
        what_ran = "cpu" if on_cpu(self.provider) else "gpu"
        device = self.machine.get(what_ran) or self.machine.get("cpu", "unknown")
        return f"{device}, {what}"

    def to_json(self) -> dict[str, Any]:
        """The file's value."""
        return {
            "format_version": FORMAT_VERSION,
            "network": self.network,
            "size": list(self.size),
            "backend": self.backend,
            "provider": self.provider,
            "batch": self.batch,
            "threads": self.threads,
            "round_to": self.round_to,
            "machine": dict(self.machine),
            "layers": [
                {
                    "weight": layer.weight,
                    "shape": list(layer.shape),
                    "positions": layer.positions,
                    "grid": grid,
                }
                for layer, grid in self.layers.values()
            ],
            "grids": [
                {"out": list(g.out), "in": list(g.inside), "ms": g.ms.tolist()} for g in self.grids
            ],
            "fit": asdict(self.fit),
            "samples": [{"predicted": p, "measured": m} for p, m in self.samples],
        }


@dataclass(frozen=True, eq=False)
class Grid:
    """Milliseconds `[len(out), len(inside)]` of one layer at the widths of its weight's axes 0, 1.

    Between its points it is the bilinear interpolation, outside of them the nearest point's. A
    wider layer never takes less.
    """

    out: tuple[int, ...]
    inside: tuple[int, ...]
    ms: np.ndarray

    def at(self, out: float, inside: float) -> float:
        """Milliseconds at `out` and `inside` channels."""
        columns = [np.interp(inside, self.inside, row) for row in self.ms]
        return float(np.interp(out, self.out, columns))


@dataclass(frozen=True)
class Fit:
    """How layers alone add up to networks.

    Attributes:
        scale: what a layer costs inside a network over what it costs alone.
        constant: milliseconds that no width changes: the call, the head, the image.
        mean_error, worst_error: relative, of each network predicted from all the others.
    """

    scale: float
    constant: float
    mean_error: float
    worst_error: float


def write_profile(path: Path | str, profile: Profile, was: Seen | None = None) -> None:
    """Write a profile, whole or not at all. `was` is what it may replace: see `replace_file`."""
    write_json(path, profile.to_json(), was)


def read_profile(path: Path | str) -> Profile:
    """Read and check a profile. Raises BudgetError naming the key that is wrong."""
    if not Path(path).exists():
        raise BudgetError(
            f"{path} does not exist: give a profile that `prunion profile` measured, in a run file "
            "as [budget] profile"
        )
    return _profile(Fields(read_json(path, BudgetError), "", str(path), BudgetError, FIX))


def no_profile(path: Path) -> str:
    """Why a file is none that `write_profile` wrote, of any version; "" if it is one."""
    if not path.is_file():
        return "is a folder"
    try:
        value = read_json(path) if path.stat().st_size else {"grids": [], "layers": [], "fit": {}}
    except PrunionError:
        value = None
    own = isinstance(value, dict) and {"grids", "layers", "fit"} <= value.keys()
    return "" if own else "is no device profile"


def fit_total(layers: np.ndarray, measured: np.ndarray) -> Fit:
    """Fit `measured` `[N]` ms by `layers` `[N]` ms, the relative error squared, constant ≥ 0."""
    scale, constant = _line(layers, measured)
    errors = []
    for left_out in range(len(layers)):
        others = np.arange(len(layers)) != left_out
        slope, start = _line(layers[others], measured[others])
        errors.append(abs((slope * layers[left_out] + start) / measured[left_out] - 1))
    return Fit(scale, constant, float(np.mean(errors)), float(np.max(errors)))


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    a, b = x / y, 1 / y  # minimise Σ (scale · x / y + constant / y - 1)²
    (scale, constant), *_ = np.linalg.lstsq(np.stack([a, b], axis=1), np.ones(len(x)), rcond=None)
    # A straight line below zero would promise networks that take no time: none has a constant then.
    if constant < 0 or scale <= 0:
        return float(a.sum() / (a * a).sum()), 0.0
    return float(scale), float(constant)


def monotone(ms: np.ndarray) -> np.ndarray:
    """The least table `[O, I]` above 0 and `ms` that never falls along an axis."""
    return np.maximum.accumulate(np.maximum.accumulate(np.maximum(ms, 0.0), axis=0), axis=1)


def _profile(top: Fields) -> Profile:
    if top.get("format_version") != FORMAT_VERSION or isinstance(top.get("format_version"), bool):
        raise top.fail("format_version", f"is not {FORMAT_VERSION}, which this prunion reads")
    grids = tuple(_grid(fields) for fields in top.each("grids", MAX_LAYERS))
    layers: dict[str, tuple[Layer, int]] = {}
    for fields in top.each("layers", MAX_LAYERS):
        layer, grid = _layer(fields, grids)
        if layer.weight in layers:
            raise fields.fail("weight", f"names {layer.weight} a second time")
        layers[layer.weight] = (layer, grid)
    fit, size = top.fields("fit"), _whole(top, "size", 1, 4096)
    if len(size) != 2 or not layers:
        raise top.fail("size" if layers else "layers", "is incomplete")
    return Profile(
        network=top.text("network", 200),
        size=(size[0], size[1]),
        backend=top.text("backend", 50),
        provider=top.text("provider", 100),
        batch=top.integer("batch", 1, 1 << 16),
        threads=top.integer("threads", 0, 1 << 16),
        round_to=top.integer("round_to", 1, 1024),
        machine=dict(top.fields("machine").value),
        layers=layers,
        grids=grids,
        fit=Fit(
            _amount(fit, "scale", above=True),
            _amount(fit, "constant"),
            _amount(fit, "mean_error"),
            _amount(fit, "worst_error"),
        ),
        samples=tuple(
            (_amount(x, "predicted"), _amount(x, "measured")) for x in top.each("samples", 10_000)
        ),
    )


def _grid(fields: Fields) -> Grid:
    out, inside = (_whole(fields, key, 1, MAX_WIDTH) for key in ("out", "in"))
    for key, widths in (("out", out), ("in", inside)):
        if not widths or list(widths) != sorted(set(widths)):
            raise fields.fail(key, "must be widths that grow")
    rows = fields.items("ms", MAX_POINTS)
    shaped = len(rows) == len(out) and all(
        isinstance(row, list) and len(row) == len(inside) and all(map(is_number, row))
        for row in rows
    )
    if not shaped:
        raise fields.fail("ms", f"must be {len(out)} rows of {len(inside)} numbers")
    ms = np.array(rows, dtype=np.float64)
    if ms.max() > MAX_MS or not np.array_equal(ms, monotone(ms)):
        raise fields.fail("ms", "must be 0 or more and never fall where a layer gets wider")
    return Grid(out, inside, ms)


def _layer(fields: Fields, grids: tuple[Grid, ...]) -> tuple[Layer, int]:
    shape = _whole(fields, "shape", 1, MAX_WIDTH)
    positions = fields.integer("positions", 1, 1 << 40)
    number = fields.integer("grid", 0, max(0, len(grids) - 1))
    if (
        len(shape) < 2
        or not grids
        or (grids[number].out[-1], grids[number].inside[-1]) != shape[:2]
    ):
        raise fields.fail("shape", "does not end its grid")
    return Layer(fields.text("weight", 1000), shape, positions), number


def _whole(fields: Fields, key: str, low: int, high: int) -> tuple[int, ...]:
    values = fields.items(key, MAX_POINTS)
    if not all(is_whole(x, low, high) for x in values):
        raise fields.fail(key, f"must be whole numbers in {low}..{high}")
    return tuple(values)


def _amount(fields: Fields, key: str, *, above: bool = False) -> float:
    value = float(fields.number(key))
    if value < 0 or (above and not value) or value > MAX_MS:
        raise fields.fail(key, f"is {value:g}, out of range")
    return value
