"""An evaluation as lines of text."""

from __future__ import annotations

from prunion.runtime.measure.evaluation import Evaluation
from prunion.runtime.measure.figures import Figures

__all__ = ["evaluation_lines"]

MOST_CLASSES = 30  # that the table lists


def evaluation_lines(evaluation: Evaluation) -> list[str]:
    """The figures as lines of text."""
    figures = evaluation.figures
    value, classes = figures.to_json(), figures.to_json()["classes"]
    few = f", top-5 {figures.top5:.2%}" if len(classes) > 5 else ""
    lines = [
        f"{figures.domain}: {value['images']:,} images, {len(classes)} classes, "
        f"{evaluation.precision}",
        f"accuracy {figures.accuracy:.2%} ({figures.right:,} right){few}, "
        f"calibration error {figures.calibration_error:.3f}",
    ]
    if evaluation.unknown:
        count = sum(evaluation.unknown.values())
        lines.append(f"left out: {count:,} images of {len(evaluation.unknown)} unknown classes")
    if evaluation.skipped:
        told = [f"{count:,} {kind}" for kind, count in evaluation.skipped.items()]
        lines.append(f"passed over: {', '.join(told)}")
    shown_ones = [row for row in classes if row["images"]]
    worst = len(shown_ones) > MOST_CLASSES
    if worst:
        shown_ones = sorted(shown_ones, key=lambda row: row["recall"])[:MOST_CLASSES]
    width = max(5, *(len(row["name"]) for row in shown_ones)) + 2
    title = f"the {MOST_CLASSES} classes of the lowest recall:" if worst else ""
    lines += [title] if worst else []
    lines.append(f"{'class':<{width}}{'images':>8}{'recall':>9}{'precision':>11}  taken for")
    for row in shown_ones:
        precision = "-" if row["precision"] is None else f"{row['precision']:.1%}"
        lines.append(
            f"{row['name']:<{width}}{row['images']:>8,}{row['recall']:>9.1%}{precision:>11}"
            f"  {_taken_for(figures, row['name'])}".rstrip()
        )
    if absent := len(classes) - sum(1 for row in classes if row["images"]):
        lines.append(f"no images of {absent} other classes")
    return lines


def _taken_for(figures: Figures, name: str) -> str:
    """The class that images of another are most often taken for, and how often."""
    row = figures.confusion[figures.classes.index(name)].copy()
    row[figures.classes.index(name)] = 0
    other = int(row.argmax())
    return f"{figures.classes[other]} ({row[other]:,})" if row[other] else ""
