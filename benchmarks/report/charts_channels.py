"""Pictures of channels: what is left of each layer, who chose which, who shares with whom."""

from __future__ import annotations

from typing import Any

import numpy as np

from prunion.benchmarks.report.paint import Chart, Paint, blank, cells, column_names, short
from prunion.benchmarks.report.subject import Subject

__all__ = ["channel_charts"]

ROW = 0.2  # inches of a layer
USERS = ("all domains", "several", "one", "none (fills up)")
MOST_NUMBERED = 12  # domains in a matrix whose cells hold their numbers


def channel_charts(subject: Subject) -> list[Chart]:
    """Sharing, widths, and the use of channels, of what the files tell."""
    charts = [_sharing(subject), _widths(subject), _users(subject), _chosen(subject)]
    return [chart for chart in charts if chart is not None]


def _sharing(subject: Subject) -> Chart | None:
    names = list(subject.sharing)
    if len(names) < 2:
        return None
    values = np.array([[subject.sharing[a][b] for b in names] for a in names])

    def draw(paint: Paint) -> Any:
        figure, axes = blank(paint, 1.4 + 0.36 * len(names))
        few = len(names) <= MOST_NUMBERED
        texts = np.array([[f"{100 * x:.0f}" for x in row] for row in values]) if few else None
        cells(axes, values, paint, texts)
        column_names(axes, names, 16, "right")
        axes.set_yticks(range(len(names)), [short(n, 16) for n in names])
        axes.set_title("% of the row's channels that the column chose too")
        return figure

    rows = [("of the channels of", *names)]
    rows += [(a, *(f"{x:.0%}" for x in row)) for a, row in zip(names, values, strict=True)]
    off = values[~np.eye(len(names), dtype=bool)]
    alt = (
        f"Matrix of {len(names)} domains: two of them share from {off.min():.0%} to "
        f"{off.max():.0%} of the channels that one of them chose"
    )
    return Chart("sharing", "Who shares what they chose", alt, draw, tuple(rows))


def _widths(subject: Subject) -> Chart | None:
    widths = subject.widths
    if not widths:
        return None
    before, after = (np.array([pair[i] for pair in widths.values()]) for i in (0, 1))

    def draw(paint: Paint) -> Any:
        figure, axes = _layers(paint, list(widths))
        rows = np.arange(len(widths))
        axes.barh(rows, before, 0.8, color=paint.grid, label="before")
        axes.barh(rows, after, 0.8, color=paint.accent, label="kept")
        for row, (a, b) in enumerate(widths.values()):
            axes.text(
                a + 0.015 * before.max(),
                row,
                f"{b} of {a}",
                va="center",
                fontsize=8,
                color=paint.muted,
            )
        axes.set_xlim(0, 1.22 * before.max())
        axes.set_xlabel("output channels")
        figure.legend(loc="outside upper center", ncols=2)
        return figure

    rows = [("layer", "before", "kept", "share")]
    rows += [(n, f"{a:,}", f"{b:,}", f"{b / a:.0%}" if a else "-") for n, (a, b) in widths.items()]
    narrower = int((after < before).sum())
    alt = (
        f"Output channels of {len(widths)} layers before and after: {narrower} are narrower, "
        f"{before.sum():,} channels became {after.sum():,}"
    )
    return Chart("widths", "Widths, layer by layer", alt, draw, tuple(rows), tall=True)


def _users(subject: Subject) -> Chart | None:
    users = subject.users
    if not users or len(subject.accuracy) < 2:
        return None
    counts = np.array(list(users.values()))
    few = len(subject.accuracy) == 2  # then nobody is "several"

    def draw(paint: Paint) -> Any:
        figure, axes = _layers(paint, list(users))
        left = np.zeros(len(counts))
        colours = (paint.accent, paint.series[2], paint.series[1], paint.grid)
        for column, (told, colour) in enumerate(zip(USERS, colours, strict=True)):
            if not (few and column == 1):
                axes.barh(
                    range(len(counts)), counts[:, column], 0.8, left, color=colour, label=told
                )
                left = left + counts[:, column]
        axes.set_xlabel("kept channels, by how many domains chose them")
        figure.legend(loc="outside upper center", ncols=2)
        return figure

    rows: list[tuple[str, ...]] = [("layer", *USERS)]
    rows += [(name, *map(str, row)) for name, row in users.items()]
    total = counts.sum(0)
    alt = "Kept channels by who chose them: " + ", ".join(
        f"{told} {count:,}" for told, count in zip(USERS, total, strict=True)
    )
    return Chart("users", "Channels by their users", alt, draw, tuple(rows), tall=True)


def _chosen(subject: Subject) -> Chart | None:
    names = list(subject.chosen)
    if not names:
        return None
    layers = list(subject.chosen[names[0]])
    values = np.array([[subject.chosen[name][layer] for name in names] for layer in layers])

    def draw(paint: Paint) -> Any:
        figure, axes = _layers(paint, layers)
        numbered = len(names) <= MOST_NUMBERED
        texts = np.array([[f"{100 * x:.0f}" for x in row] for row in values]) if numbered else None
        cells(axes, values, paint, texts)
        axes.xaxis.tick_top()
        column_names(axes, names, 14, "left")
        return figure

    rows = [("layer", *names)]
    rows += [(a, *(f"{x:.0%}" for x in row)) for a, row in zip(layers, values, strict=True)]
    means = ", ".join(f"{n} {x:.0%}" for n, x in zip(names, values.mean(0), strict=True))
    alt = f"Share of each layer's kept channels that each domain chose; on average {means}"
    title = "Which layers each domain uses, % of the kept channels"
    return Chart("chosen", title, alt, draw, tuple(rows), tall=True)


def _layers(paint: Paint, names: list[str]) -> tuple[Any, Any]:
    figure, axes = blank(paint, 1.1 + ROW * len(names))
    axes.set_yticks(range(len(names)), [short(n) for n in names], fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    return figure, axes
