"""Pictures of answers: what is taken for what, how well each class is known, how sure it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from prunion.benchmarks.report.paint import Chart, Paint, blank, cells, short
from prunion.runtime.base import bits_from_hex

__all__ = ["answer_charts", "check_answers", "confused"]

MOST_CLASSES = 40  # in a matrix that can still be read
MOST_ROWS = 30  # classes in a list, those of the lowest recall
MOST_NUMBERED = 12
ROUNDING = 1e-6


def answer_charts(domain: str, figures: Mapping[str, Any]) -> list[Chart]:
    """The pictures of one domain, from what `Figures.to_json` gives."""
    classes = [str(row["name"]) for row in figures["classes"]]
    charts = [_recall(domain, figures)]
    if len(classes) <= MOST_CLASSES:
        charts.insert(0, _confusion(domain, figures, classes))
    if figures["calibration"]:
        charts.append(_calibration(domain, figures))
    return charts


def check_answers(figures: Mapping[str, Any]) -> None:
    """Raise ValueError, KeyError, … where figures are none: no share of 1, a place of no class."""
    images, classes = int(figures["images"]), figures["classes"]
    shares = [figures[key] for key in ("accuracy", "top5", "calibration_error")]
    shares += [row[key] for row in classes if row["images"] for key in ("recall", "precision")]
    shares += [part[key] for part in figures["calibration"] for key in ("accuracy", "confidence")]
    shares += [one["confidence"] for one in figures.get("mistakes", ())]
    for share in shares:
        if share is not None and not -ROUNDING <= float(share) <= 1 + ROUNDING:  # nor NaN
            raise ValueError(f"{share} is no share of 1")
    counts = [row["images"] for row in (*classes, *figures["calibration"])]
    for i, j, count in figures["confusion"]:
        if not (0 <= i < len(classes) and 0 <= j < len(classes)):
            raise ValueError(f"[{i}, {j}] is no place of {len(classes)} classes")
        counts.append(count)
    if not all(0 <= int(count) <= images for count in counts):
        raise ValueError(f"a count is not within the {images} images")
    if "right_bits" in figures:
        bits_from_hex(figures["right_bits"], images)


def confused(figures: Mapping[str, Any], most: int = 12) -> list[tuple[str, str, int]]:
    """What is most often taken for what: class, answer, how often."""
    names = [str(row["name"]) for row in figures["classes"]]
    wrong = [(int(n), int(i), int(j)) for i, j, n in figures["confusion"] if i != j]
    return [(names[i], names[j], n) for n, i, j in sorted(wrong, reverse=True)[:most]]


def _confusion(domain: str, figures: Mapping[str, Any], classes: list[str]) -> Chart:
    counts = np.zeros((len(classes), len(classes)), int)
    for i, j, n in figures["confusion"]:
        counts[int(i), int(j)] = int(n)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)

    def draw(paint: Paint) -> Any:
        figure, axes = blank(paint, 1.2 + min(0.4 * len(classes), 4.2))
        numbers = len(classes) <= MOST_NUMBERED
        texts = np.where(counts > 0, counts.astype(str), "") if numbers else None
        cells(axes, shares, paint, texts)
        labels = [short(name, 16) for name in classes]
        size = 9 if numbers else 7 if len(classes) <= 26 else 5
        axes.set_xticks(range(len(classes)), labels, rotation=60, ha="right", fontsize=size)
        axes.set_yticks(range(len(classes)), labels, fontsize=size)
        axes.set_xlabel("answer")
        axes.set_ylabel("what it is")
        return figure

    told = "; ".join(f"{n} of {a} taken for {b}" for a, b, n in confused(figures, 3))
    alt = f"Confusion matrix of {domain}, {len(classes)} classes. " + (told or "No mistakes")
    rows = [("class", "taken for", "images")]
    rows += [(a, b, f"{n:,}") for a, b, n in confused(figures)]
    return Chart(f"confusion-{domain}", "Confusion", alt, draw, tuple(rows))


def _recall(domain: str, figures: Mapping[str, Any]) -> Chart:
    rows = [row for row in figures["classes"] if row["images"]]
    rows.sort(key=lambda row: float(row["recall"]))
    listed = rows[:MOST_ROWS]

    def draw(paint: Paint) -> Any:
        figure, axes = blank(paint, 0.8 + 0.22 * len(listed))
        places = range(len(listed))
        values = [100 * float(row["recall"]) for row in listed]
        axes.barh(places, values, 0.75, color=paint.accent, alpha=0.85)
        for place, (value, row) in enumerate(zip(values, listed, strict=True)):
            label = f"{value:.0f} % of {int(row['images']):,}"
            axes.text(value + 1.5, place, label, va="center", fontsize=8, color=paint.muted)
        axes.set_yticks(places, [short(str(row["name"])) for row in listed], fontsize=9)
        axes.set_ylim(len(listed) - 0.4, -0.6)
        axes.set_xlim(0, 132)
        axes.set_xticks([0, 25, 50, 75, 100])
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("recall, %")
        return figure

    table = [("class", "images", "recall", "precision")]
    for row in rows:
        precision = "-" if row["precision"] is None else f"{float(row['precision']):.1%}"
        table.append((str(row["name"]), f"{row['images']:,}", f"{row['recall']:.1%}", precision))
    which = f", the {MOST_ROWS} worst of {len(rows)}" if len(rows) > MOST_ROWS else ""
    worst = ", ".join(f"{row['name']} {float(row['recall']):.0%}" for row in rows[:3])
    alt = f"Recall of the classes of {domain}{which}; lowest: {worst}"
    title = f"Recall by class{which}"
    return Chart(f"recall-{domain}", title, alt, draw, tuple(table), tall=True)


def _calibration(domain: str, figures: Mapping[str, Any]) -> Chart:
    bins = figures["calibration"]
    error = float(figures["calibration_error"])

    def draw(paint: Paint) -> Any:
        figure, axes = blank(paint, 3.2)
        most = max(float(b["images"]) for b in bins)
        sizes = [20 + 220 * float(b["images"]) / most for b in bins]
        x, y = ([100 * float(b[key]) for b in bins] for key in ("confidence", "accuracy"))
        axes.plot([0, 100], [0, 100], color=paint.muted, lw=1, ls=":")
        axes.scatter(x, y, sizes, color=paint.accent, alpha=0.7, lw=0)
        axes.set(xlim=(0, 103), ylim=(-3, 106), xlabel="how sure it is, %", ylabel="how right, %")
        return figure

    rows = [("images", "how sure", "how right")]
    rows += [
        (f"{b['images']:,}", f"{float(b['confidence']):.1%}", f"{float(b['accuracy']):.1%}")
        for b in bins
    ]
    alt = f"Accuracy over confidence for {domain}; expected calibration error {error:.3f}"
    title = f"Calibration, error {error:.3f}"
    return Chart(f"calibration-{domain}", title, alt, draw, tuple(rows))
