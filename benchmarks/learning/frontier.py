"""A picture of the learning table: accuracy against what the file keeps, a line for each method.

    python -m prunion.benchmarks.learning.frontier ROWS.jsonl --like all.precision-bf16 -o F.svg

Left against parameters, right against MACs, both as shares of the backbone's on a logarithmic axis.
A point is a row's mean over its seeds, a bar their least and most; a line joins a method's budgets
of one kind. Every channel is the dashed line.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from prunion.benchmarks.learning.catalogue import POINTS, ROWS
from prunion.benchmarks.learning.paired import label_of, read_rows
from prunion.runtime.base import install_hint, replace_file
from prunion.runtime.cli import FilePath, OneLineCommand
from prunion.trainer.config import BudgetKind

__all__ = ["Spot", "main", "spots"]

EVERYTHING = "tuned-all"
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
    """A row: its mean accuracy over seeds, their least and most, and its largest file's shares."""

    method: str
    kind: BudgetKind
    params: float
    macs: float
    mean: float
    low: float
    high: float


def spots(lines: Sequence[dict[str, Any]], like: str) -> list[Spot]:
    """The rows of `lines` that the picture shows, those alone whose settings are `like`."""
    seeds: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        row, _, extra = label_of(line).partition(".")
        if extra == like:
            seeds.setdefault(row, []).append(line)
    named = {f"{method}-{point}": method for method in SHOWN for point in POINTS}
    named[EVERYTHING] = EVERYTHING
    found = []
    for row, method in named.items():
        runs = seeds.get(row)
        if not runs:
            continue
        means = [run["mean"] for run in runs]
        params, macs = (max(run[key] for run in runs) for key in ("params", "macs"))
        middle = statistics.mean(means)
        found.append(Spot(method, ROWS[row].kind, params, macs, middle, min(means), max(means)))
    return found


@click.command(cls=OneLineCommand)
@click.argument("rows", type=FilePath(exists=True, path_type=Path))
@click.option("--like", default="", help="Only rows with these settings, as their keys end.")
@click.option("--backbone", default="resnet18", show_default=True)
@click.option("-o", "--output", required=True, type=FilePath(path_type=Path), help=".svg or .png")
def main(rows: Path, like: str, backbone: str, output: Path) -> None:
    """Draw the frontier of accuracy against parameters and MACs."""
    lines = read_rows(rows)
    found = spots([x for x in lines if x["key"].split(".")[0] == backbone], like)
    if not any(spot.method != EVERYTHING for spot in found):
        keys = ", ".join(dict.fromkeys(label_of(x).partition(".")[2] or "''" for x in lines))
        raise click.UsageError(f"no row of {backbone} with these settings in {rows}: --like {keys}")
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise click.ClickException(f"needs matplotlib: {install_hint('report')}") from None
    figure = Figure(figsize=(9.6, 4.8), layout="constrained")
    _draw(figure, found)
    with matplotlib.rc_context({"svg.hashsalt": "prunion", "svg.fonttype": "none"}):
        told = {"Date": None} if output.suffix == ".svg" else {}
        with replace_file(output) as temporary:
            figure.savefig(temporary, format=output.suffix[1:], dpi=160, metadata=told)


def _draw(figure: Any, found: Sequence[Spot]) -> None:
    panels = figure.subplots(1, 2, sharey=True)
    for axes, cost in zip(panels, ("params", "macs"), strict=True):
        for spot in found:
            if spot.method == EVERYTHING:
                axes.axhline(100 * spot.mean, ls="--", color="#555555", label="every channel")
        for method, (label, colour) in SHOWN.items():
            told = label
            for kind, marker in (("params", "o"), ("macs", "s")):
                each = [s for s in found if (s.method, s.kind) == (method, kind)]
                each.sort(key=lambda spot: float(getattr(spot, cost)))
                if not each:
                    continue
                shares = [100 * float(getattr(spot, cost)) for spot in each]
                bars = [
                    [100 * (s.mean - s.low) for s in each],
                    [100 * (s.high - s.mean) for s in each],
                ]
                axes.errorbar(
                    shares,
                    [100 * s.mean for s in each],
                    yerr=bars,
                    marker=marker,
                    ms=5,
                    lw=1.2,
                    capsize=2,
                    color=colour,
                    label=told or None,
                )
                told = ""
        axes.set_xscale("log")
        axes.set_xlim(right=105)
        ticks = [10, 25, 50, 100]
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.25)
        name = {"params": "parameters", "macs": "MACs"}[cost]
        axes.set_xlabel(f"{name} in the file, % of the backbone's")
    panels[0].set_ylabel("accuracy, mean over domains, %")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9)
    panels[0].set_title("● a budget of parameters   ■ of MACs", fontsize=9, loc="left")


if __name__ == "__main__":
    main()
