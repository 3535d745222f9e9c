"""How every picture looks: drawn once, for a page of light and dark and for files."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import accumulate
from pathlib import Path
from typing import Any
from unicodedata import east_asian_width

import numpy as np

__all__ = [
    "CSS",
    "Chart",
    "Paint",
    "blank",
    "cells",
    "column_names",
    "distinct",
    "inline_svg",
    "is_picture",
    "legend_room",
    "save_pictures",
    "short",
]

MADE_BY = "prunion report"  # in every file's metadata, where matplotlib has its own name
WIDTH = 5.0  # inches: 360 units of a page, the width of a phone, so that text keeps its size
LONGEST_NAME = 26  # characters, in a picture
MOST_SLANTED = 12  # columns of a matrix whose names do not run into each other


@dataclass(frozen=True)
class Paint:
    """The colours of a picture; `series` are for domains, in order."""

    ink: str
    muted: str
    grid: str
    paper: str
    accent: str
    series: tuple[str, ...]

    def of(self, index: int) -> str:
        """The colour of the i-th domain or run."""
        return self.series[index % len(self.series)]


# Stand-ins that no picture has by chance: on the page each becomes a variable of the style sheet.
ON_PAGE = Paint(
    *("#010203", "#010204", "#010205", "#010206", "#010207"),
    tuple(f"#01030{index}" for index in range(8)),
)
LIGHT = Paint(
    *("#1c2430", "#5b6675", "#d9dee5", "#ffffff", "#1f5fbf"),
    ("#1f5fbf", "#c2410c", "#15803d", "#9333ea", "#b45309", "#0e7490", "#be185d", "#4d7c0f"),
)
DARK = Paint(
    *("#e8ecf2", "#a3adba", "#38424f", "#1b222c", "#7db0ff"),
    ("#7db0ff", "#ff9d6b", "#6ee7a0", "#d0a5ff", "#f5c451", "#67d9ee", "#ff8fc0", "#bbdd66"),
)


def _variables(paint: Paint) -> str:
    names = ("ink", "muted", "grid", "paper", "accent")
    values = [f"--{name}:{getattr(paint, name)}" for name in names]
    return ";".join([*values, *(f"--s{i}:{colour}" for i, colour in enumerate(paint.series))])


# Printed pages are light, whatever the screen is.
CSS = (
    f":root{{color-scheme:light dark;{_variables(LIGHT)}}}"
    f"@media screen and (prefers-color-scheme:dark){{:root{{{_variables(DARK)}}}}}"
)


@dataclass(frozen=True)
class Chart:
    """One picture of the page.

    Attributes:
        name: of its files.
        title, alt: above it, and what it shows for those who cannot see it.
        draw: draws it in given colours, a matplotlib figure.
        rows: the same numbers as a table, the first row its head.
        tall: it may be taller than a screen, and scrolls.
    """

    name: str
    title: str
    alt: str
    draw: Callable[[Paint], Any]
    rows: tuple[tuple[str, ...], ...] = ()
    tall: bool = False


def distinct(charts: Sequence[Chart]) -> list[Chart]:
    """The charts with names that no two have, whatever domains are called; the first keep theirs.

    Nor do two differ in the case of letters alone, which not every file system tells apart.
    """
    found, taken = [], set[str]()
    for chart in charts:
        name, number = chart.name, 1
        while name.casefold() in taken:
            number += 1
            name = f"{chart.name}-{number}"
        taken.add(name.casefold())
        found.append(replace(chart, name=name))
    return found


def blank(paint: Paint, height: float) -> tuple[Any, Any]:
    """A figure of the page's width and its axes, `height` in inches; within `painted`."""
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(WIDTH, height), layout="constrained")


def legend_room(names: int, columns: int) -> float:
    """Inches that a legend below a picture takes beyond its first three lines."""
    return 0.19 * max(0, -(-names // columns) - 3)


def column_names(axes: Any, names: Sequence[str], longest: int, side: str) -> None:
    """Names under the columns of a matrix: slanted, or upright and small where there are many."""
    few = len(names) <= MOST_SLANTED
    angle, place = (40, side) if few else (90, "center")
    labels = [short(name, longest) for name in names]
    size = None if few else max(4.0, min(9.0, 200 / len(names)))
    axes.set_xticks(range(len(names)), labels, rotation=angle, ha=place, fontsize=size)


def cells(axes: Any, values: np.ndarray, paint: Paint, texts: np.ndarray | None = None) -> None:
    """A matrix of shares 0 … 1 as squares of more or less colour, on light and dark alike."""
    from matplotlib.patches import Rectangle

    for (row, column), value in np.ndenumerate(values):
        if value > 0:
            place = (column - 0.5, row - 0.5)
            alpha = min(0.9, 0.08 + 0.82 * float(value))
            axes.add_patch(Rectangle(place, 1, 1, color=paint.accent, alpha=alpha, lw=0))
        if texts is not None and texts[row, column]:
            colour = paint.paper if value > 0.75 else paint.ink
            label = texts[row, column]
            axes.text(column, row, label, ha="center", va="center", color=colour, fontsize=9)
    axes.set_xlim(-0.5, values.shape[1] - 0.5)
    axes.set_ylim(values.shape[0] - 0.5, -0.5)
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def short(name: str, longest: int = LONGEST_NAME) -> str:
    """A name that fits into a picture: its beginning and its end. Wide letters count for two."""
    if sum(map(_width, name)) <= longest:
        return name
    head = (longest - 1) // 2
    return f"{_within(name, head)}…{_within(name[::-1], longest - 1 - head)[::-1]}"


def _within(name: str, most: int) -> str:
    """As much of its beginning as `most` letters are wide."""
    widths = accumulate(map(_width, name))
    return name[: sum(width <= most for width in widths)]


def _width(letter: str) -> int:
    return 2 if east_asian_width(letter) in "WF" else 1


def painted(chart: Chart, paint: Paint) -> Any:
    """The chart in given colours, a matplotlib figure that the caller closes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with warnings.catch_warnings(), pyplot.rc_context(_style(paint)):
        warnings.simplefilter("ignore")  # the reader's fonts may know glyphs that ours lack
        figure = chart.draw(paint)
        figure.canvas.draw()
    return figure


def inline_svg(chart: Chart, prefix: str) -> str:
    """The chart as an SVG element in the colours of the page; `prefix` makes its ids its own."""
    text = _svg(painted(chart, ON_PAGE))
    text = text[text.index("<svg") :]
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(?<![\w-])id="', f'id="{prefix}', text)
    text = text.replace("url(#", f"url(#{prefix}").replace('href="#', f'href="#{prefix}')
    for name in ("ink", "muted", "grid", "paper", "accent"):
        text = text.replace(getattr(ON_PAGE, name), f"var(--{name})")
    for index, colour in enumerate(ON_PAGE.series):
        text = text.replace(colour, f"var(--s{index})")
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)
    assert size
    head = f'<svg viewBox="0 0 {size[1]} {size[2]}" role="img" aria-label="{escape(chart.alt)}">'
    return re.sub(r"<svg[^>]*>", lambda _: head, text, count=1)


def save_pictures(chart: Chart, folder: Path) -> None:
    """The chart as `NAME.svg` and `NAME.png` in light colours."""
    (folder / f"{chart.name}.svg").write_text(_svg(painted(chart, LIGHT)), "utf-8")
    figure = painted(chart, LIGHT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        place, made_by = folder / f"{chart.name}.png", {"Software": MADE_BY}
        figure.savefig(place, dpi=160, facecolor=LIGHT.paper, metadata=made_by)
    _close(figure)


def is_picture(path: Path) -> bool:
    """Whether `save_pictures` wrote a file, which says so near its beginning."""
    with path.open("rb") as file:
        start = file.read(4096)
    said = f"<dc:title>{MADE_BY}<" if path.suffix == ".svg" else f"Software\0{MADE_BY}"
    return path.suffix in (".svg", ".png") and said.encode() in start


def _svg(figure: Any) -> str:
    from matplotlib import rc_context

    stream = io.StringIO()
    with warnings.catch_warnings(), rc_context({"svg.fonttype": "none", "svg.hashsalt": "prunion"}):
        warnings.simplefilter("ignore")
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": MADE_BY})
    _close(figure)
    return re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 system-ui, sans-serif", stream.getvalue())


def _close(figure: Any) -> None:
    from matplotlib import pyplot

    pyplot.close(figure)


def _style(paint: Paint) -> Any:
    return {
        "font.size": 10,
        "font.family": "sans-serif",
        "text.parse_math": False,  # a class may be named with dollars
        "svg.fonttype": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.linewidth": 0.8,
        "axes.titlesize": 10,
        "axes.titlelocation": "left",
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "legend.labelcolor": paint.ink,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "text.color": paint.ink,
        "axes.labelcolor": paint.muted,
        "axes.titlecolor": paint.ink,
        "axes.edgecolor": paint.grid,
        "axes.facecolor": "none",
        "figure.facecolor": "none",
        "xtick.color": paint.muted,
        "ytick.color": paint.muted,
        "grid.color": paint.grid,
    }
