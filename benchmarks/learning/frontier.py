"""A picture of the learning table: accuracy against what the file keeps, a line for each method.

    python -m prunion.benchmarks.learning.frontier ROWS.jsonl --like all.precision-bf16 -o F.svg

First against parameters, then against MACs, both as shares of the backbone's on a logarithmic axis,
and where `--latency` has them against the milliseconds that `latency.py` measured of the rows'
bundles. A point is a row's mean over its seeds, a bar their least and most; a line joins a method's
budgets of one kind. Every channel is the dashed line.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import click

from prunion.benchmarks.learning.paired import read_rows
from prunion.benchmarks.learning.plan.catalogue import (
    LATENCY,
    POINTS,
    ROWS,
    profile_of,
    settings_of,
)
from prunion.benchmarks.learning.plan.key import RowKey, is_key, row_of
from prunion.runtime.base import install_hint
from prunion.runtime.cli import FilePath, OneLineCommand
from prunion.runtime.errors import InputError
from prunion.trainer.config import BudgetKind
from prunion.trainer.run import write_figure

__all__ = ["Spot", "main", "shares_of_time", "spots"]

EVERYTHING = "tuned-all"
CASE = "one"  # image, of what `latency.py` times
SHARES = (*POINTS, *LATENCY)
# Kind of budget: matplotlib's marker, how the title shows it, in words.
MARKERS: Mapping[BudgetKind, tuple[str, str, str]] = {
    "params": ("o", "●", "parameters"),
    "macs": ("s", "■", "MACs"),
    "latency": ("^", "▲", "time"),
}
# Method: how the picture calls it, its colour (Okabe and Ito's, which the colour-blind tell apart).
SHOWN = {
    "tuned": ("union, learned switches", "#0072b2"),
    "one-shot": ("one cut", "#d55e00"),
    "one-shot-floor": ("one cut, a twentieth of every layer stays", "#e69f00"),
    "greedy": ("a ramp of cuts", "#009e73"),
    "intersection": ("intersection", "#56b4e9"),
    "jaccard": ("Jaccard", "#cc79a7"),
    "tuned-random": ("union from random ranks", "#888888"),
    "slim-first-magnitude-global": ("cut first, by magnitude", "#8c6d31"),
    "slim-first-taylor-global": ("cut first, Taylor", "#bcbd22"),
    "separate": ("a network for each domain, together", "#000000"),
}


@dataclass(frozen=True)
class Spot:
    """A row: its mean accuracy over seeds, their least and most, and its largest file's shares.

    `time` is what one image takes, a share of what it takes with every channel; None: not measured.
    """

    method: str
    kind: BudgetKind
    params: float
    macs: float
    mean: float
    low: float
    high: float
    time: float | None = None


def spots(
    lines: Sequence[dict[str, Any]], like: str, times: Mapping[str, float] = MappingProxyType({})
) -> list[Spot]:
    """The rows of `lines` that the picture shows, those alone whose settings are `like`.

    Args:
        times: of each row, as `shares_of_time` reads them.

    Raises InputError where a row of latency is there by several profiles.
    """
    seeds: dict[str, list[dict[str, Any]]] = {}
    keys: dict[str, str] = {}
    for line in lines:
        if settings_of(line["key"]) != like:
            continue
        row = RowKey.of(line).row
        other = keys.setdefault(row, line["key"])
        if profile_of(other) != profile_of(line["key"]):
            raise InputError(f"{other} and {line['key']} are one spot: leave one of them out")
        seeds.setdefault(row, []).append(line)
    named = {f"{method}-{point}": method for method in SHOWN for point in SHARES}
    named[EVERYTHING] = EVERYTHING
    found = []
    for row, method in named.items():
        runs = seeds.get(row)
        if not runs:
            continue
        means = [run["mean"] for run in runs]
        params, macs = (max(run[key] for run in runs) for key in ("params", "macs"))
        middle = statistics.mean(means)
        ends, time = (min(means), max(means)), times.get(row)
        found.append(Spot(method, ROWS[row].kind, params, macs, middle, *ends, time))
    return found


def shares_of_time(path: Path, backbone: str = "resnet18", like: str = "") -> dict[str, float]:
    """What one image takes in each row of a file of `latency.py`, over every channel's.

    Of bundles that are called by their whole key those alone that are of the backbone and the
    settings; the others have the row's name alone, because the file holds them once.

    Raises InputError for another file, or one that measured against another row.
    """
    found: dict[str, list[float]] = {}
    for number, text in enumerate(path.read_text("utf-8").splitlines(), 1):
        try:
            line = json.loads(text)
            row, against = (str(line[key]) for key in ("row", "against"))
            share = 1.0 if row == against else float(line["ratio"][CASE][0])
        except (ValueError, LookupError, TypeError):
            raise InputError(
                f"{path}, line {number}, is no line of `benchmarks.learning.latency`: give its file"
            ) from None
        if not _is_of(row, backbone, like):
            continue
        if row_of(against) != EVERYTHING or not _is_of(against, backbone, like):
            raise InputError(
                f"{path}, line {number}, is against {against}: measure with "
                f"--reference {EVERYTHING}, of the same backbone and settings"
            )
        found.setdefault(row_of(row), []).append(share)
    return {row: statistics.mean(shares) for row, shares in found.items()}


def _is_of(name: str, backbone: str, like: str) -> bool:
    if not is_key(name):
        return True
    return RowKey.parse(name).backbone == backbone and settings_of(name) == like


@click.command(cls=OneLineCommand)
@click.argument("rows", type=FilePath(exists=True, path_type=Path))
@click.option("--like", default="", help="Only rows with these settings, as their keys end.")
@click.option("--backbone", default="resnet18", show_default=True)
@click.option(
    "--latency",
    type=FilePath(exists=True, path_type=Path),
    help="Of `benchmarks.learning.latency --reference tuned-all`: a third panel, against time.",
)
@click.option("-o", "--output", required=True, type=FilePath(path_type=Path), help=".svg or .png")
def main(rows: Path, like: str, backbone: str, latency: Path | None, output: Path) -> None:
    """Draw the frontier of accuracy against parameters, MACs and measured time."""
    lines = read_rows(rows, ("params", "macs"))
    times = {} if latency is None else shares_of_time(latency, backbone, like)
    found = spots([x for x in lines if RowKey.of(x).backbone == backbone], like, times)
    if not any(spot.method != EVERYTHING for spot in found):
        keys = ", ".join(dict.fromkeys(settings_of(x["key"]) or "''" for x in lines))
        raise click.UsageError(f"no row of {backbone} with these settings in {rows}: --like {keys}")
    if latency is not None and all(spot.time is None for spot in found):
        raise click.UsageError(f"{latency} has no time of any of these rows: --latency")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise click.ClickException(f"needs matplotlib: {install_hint('report')}") from None
    figure = Figure(figsize=(4.8 * (2 + bool(times)), 4.8), layout="constrained")
    _draw(figure, found)
    write_figure(figure, output)


def _draw(figure: Any, found: Sequence[Spot]) -> None:
    costs = {
        "params": "parameters in the file, % of the backbone's",
        "macs": "MACs in the file, % of the backbone's",
        "time": "time of one image, % of every channel's",
    }
    shown = [cost for cost in costs if any(getattr(spot, cost) is not None for spot in found)]
    panels = figure.subplots(1, len(shown), sharey=True)
    for axes, cost in zip(panels, shown, strict=True):
        for spot in found:
            if spot.method == EVERYTHING:
                axes.axhline(100 * spot.mean, ls="--", color="#555555", label="every channel")
        for method in SHOWN:
            _draw_method(axes, cost, method, [spot for spot in found if spot.method == method])
        axes.set_xscale("log")
        axes.set_xlim(right=105)
        ticks = [10, 25, 50, 100]
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.25)
        axes.set_xlabel(costs[cost])
    panels[0].set_ylabel("accuracy, mean over domains, %")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9)
    told = [f"{sign} of {what}" for kind, (_, sign, what) in MARKERS.items() if _has(found, kind)]
    panels[0].set_title("   ".join(["a budget", *told]), fontsize=9, loc="left")


def _draw_method(axes: Any, cost: str, method: str, found: Sequence[Spot]) -> None:
    """A line for each kind of budget; the first one has the method's name in the legend."""
    label, colour = SHOWN[method]
    for kind, (marker, _, _) in MARKERS.items():
        each = [s for s in found if s.kind == kind and getattr(s, cost) is not None]
        each.sort(key=lambda spot: float(getattr(spot, cost)))
        if not each:
            continue
        axes.errorbar(
            [100 * float(getattr(spot, cost)) for spot in each],
            [100 * s.mean for s in each],
            yerr=[[100 * (s.mean - s.low) for s in each], [100 * (s.high - s.mean) for s in each]],
            marker=marker,
            ms=5,
            lw=1.2,
            capsize=2,
            color=colour,
            label=label or None,
        )
        label = ""


def _has(found: Sequence[Spot], kind: BudgetKind) -> bool:
    return any(spot.kind == kind and spot.method != EVERYTHING for spot in found)


if __name__ == "__main__":
    main()
