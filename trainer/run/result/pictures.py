"""What a run shows of itself as plain data that plots: accuracy against cost, and shared channels.

matplotlib is needed to plot, and only then (the extra `report`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunion.runtime.base import install_hint, replace_file, shown
from prunion.runtime.errors import InputError, MissingDependencyError

__all__ = ["COSTS", "Frontier", "Point", "Sharing", "save_picture", "write_figure"]

COSTS = ("params", "macs")  # that a network is drawn by


@dataclass(frozen=True)
class Point:
    """One network: shares of the backbone's cost, and the share of right answers by domain.

    `spread` is the standard deviation of the mean accuracy over seeds; None of one network.
    """

    name: str
    params: float
    macs: float
    accuracy: Mapping[str, float]
    spread: float | None = None

    @property
    def mean(self) -> float:
        """The domains' mean accuracy."""
        return sum(self.accuracy.values()) / len(self.accuracy)


@dataclass(frozen=True)
class Frontier:
    """Accuracy against cost, one point for each network.

    Attributes:
        own_weights: whether `params` are as the papers count, with every domain's own weights.
    """

    points: tuple[Point, ...]
    own_weights: bool = False

    def plot(self, axes: Any = None, *, cost: str = "params") -> Any:
        """Draw a line for each domain and their mean into matplotlib's `axes`, and return them.

        Args:
            cost: `params` or `macs`.

        Raises:
            MissingDependencyError: there is no matplotlib.
            InputError: there is no such cost.
        """
        if cost not in COSTS:
            raise InputError(f"cost is {shown(cost)}: use {' or '.join(COSTS)}")
        axes = _axes(axes)
        points = sorted(self.points, key=lambda point: float(getattr(point, cost)))
        shares = [100 * getattr(point, cost) for point in points]
        for name in points[0].accuracy:
            each = [100 * point.accuracy[name] for point in points]
            axes.plot(shares, each, marker="o", alpha=0.6, label=name)
        mean = [100 * point.mean for point in points]
        bars = [100 * (point.spread or 0.0) for point in points]
        spread = bars if any(bars) else None
        axes.errorbar(shares, mean, yerr=spread, fmt="k--", marker="o", capsize=3, label="mean")
        own = ", own weights too" if self.own_weights and cost == "params" else ""
        axes.set(xlabel=f"{cost}{own}, % of the backbone's", ylabel="accuracy, %")
        axes.legend()
        return axes


@dataclass(frozen=True)
class Sharing:
    """Who uses whose channels.

    Attributes:
        matrix: row i, column j: of the kept channels that domain i chose, the share that j chose.
        everyone: share of the kept channels that every domain chose.
        of: what they are of: channels, or single slices.
    """

    domains: tuple[str, ...]
    matrix: tuple[tuple[float, ...], ...]
    everyone: float
    of: str = "channels"

    def plot(self, axes: Any = None) -> Any:
        """Draw the matrix into matplotlib's `axes`, and return them.

        Raises MissingDependencyError without matplotlib.
        """
        axes = _axes(axes)
        axes.imshow(self.matrix, vmin=0, vmax=1, cmap="Blues")
        places = range(len(self.domains))
        axes.set_xticks(places, self.domains, rotation=45, ha="right")
        axes.set_yticks(places, self.domains)
        for i, row in enumerate(self.matrix):
            for j, share in enumerate(row):
                colour = "white" if share > 0.6 else "black"
                axes.text(j, i, f"{share:.0%}", ha="center", va="center", color=colour)
        axes.set(xlabel="… that this domain chose too", ylabel=f"of the {self.of} of …")
        return axes


def save_picture(frontier: Frontier, place: Path, *, cost: str = "params") -> tuple[Path, ...]:
    """Write the frontier to `place` with .png and .svg behind its name; returns both paths.

    Raises MissingDependencyError without matplotlib.
    """
    try:
        from matplotlib.figure import Figure  # without pyplot: no window, no state
    except ImportError:
        raise MissingDependencyError(f"a plot needs matplotlib: {install_hint('report')}") from None
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    frontier.plot(figure.subplots(), cost=cost)
    paths = tuple(place.with_name(place.name + suffix) for suffix in (".png", ".svg"))
    for path in paths:
        write_figure(figure, path)
    return paths


def write_figure(figure: Any, path: Path) -> None:
    """Write a figure of matplotlib's, of the format that the file's name ends with.

    The same figure is the same file: no date, no random ids.
    """
    from matplotlib import rc_context

    told = {"Date": None} if path.suffix == ".svg" else {}
    with (
        rc_context({"svg.hashsalt": "prunion", "svg.fonttype": "none"}),
        replace_file(path) as temporary,
    ):
        figure.savefig(temporary, format=path.suffix[1:], dpi=160, metadata=told)


def _axes(axes: Any) -> Any:
    if axes is not None:
        return axes
    try:
        from matplotlib import pyplot
    except ImportError:
        raise MissingDependencyError(f"a plot needs matplotlib: {install_hint('report')}") from None
    return pyplot.subplots()[1]
