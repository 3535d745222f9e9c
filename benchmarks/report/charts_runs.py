"""Pictures of runs: accuracy, accuracy against cost over several of them, and how they learned."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from prunion.benchmarks.report.paint import Chart, Paint, blank, legend_room, short
from prunion.benchmarks.report.subject import Subject

__all__ = ["accuracy_chart", "budget_chart", "curve_charts", "frontier_charts"]

MOST_POINTS = 400  # of a curve: more are averaged


def accuracy_chart(subject: Subject) -> Chart | None:
    """Accuracy of every domain, beside the baseline where there is one."""
    names = list(subject.accuracy)
    if not names:
        return None
    rival = subject.baseline
    after = {} if rival else subject.after_warmup
    other_images = ", on validation images" if subject.validated else ""

    def draw(paint: Paint) -> Any:
        figure, axes = blank(paint, 0.9 + 0.34 * len(names))
        for row, name in enumerate(names):
            value = 100 * subject.accuracy[name]
            if name in rival:
                axes.plot([100 * rival[name], value], [row, row], color=paint.muted, lw=2)
            axes.text(value, row - 0.18, f"{value:.1f}", ha="center", va="bottom", fontsize=9)
        rows = range(len(names))
        if rival:
            values = [100 * rival.get(n, np.nan) for n in names]
            label = f"every channel, {subject.epochs[1]} epochs too"
            axes.plot(values, rows, "s", color=paint.muted, label=label)
        if after:
            values = [100 * after.get(n, np.nan) for n in names]
            label = f"every channel, {subject.epochs[0]} epochs only (after warm-up{other_images})"
            axes.plot(values, rows, "|", ms=12, color=paint.muted, label=label)
        values = [100 * subject.accuracy[n] for n in names]
        axes.plot(values, rows, "o", ms=7, color=paint.accent, label="pruned")
        axes.set_yticks(rows, [short(n) for n in names])
        axes.set_ylim(len(names) - 0.5, -0.7)
        low, high = axes.get_xlim()
        axes.set_xlim(max(0, low - 2), min(102, high + 2))
        axes.set_xlabel("accuracy on the test images, %")
        figure.legend(loc="outside lower center", ncols=1)
        return figure

    head = ["domain", "pruned"]
    head += ["every channel", "points"] if rival else []
    head += [f"after warm-up ({subject.epochs[0]} epochs{other_images})"] if after else []
    rows = [tuple(head)]
    for name in names:
        value = subject.accuracy[name]
        row = [name, f"{value:.2%}"]
        if rival:
            other = rival.get(name)
            found = None if other is None else (f"{other:.2%}", f"{100 * (value - other):+.2f}")
            row += found or ("-", "-")
        if after:
            row.append(f"{after[name]:.2%}" if name in after else "-")
        rows.append(tuple(row))
    told = ", ".join(f"{n} {subject.accuracy[n]:.1%}" for n in names)
    return Chart("accuracy", "Accuracy", f"Accuracy of each domain: {told}", draw, tuple(rows))


def budget_chart(subjects: Sequence[Subject]) -> Chart | None:
    """Accuracy of each domain over the share of the parameters that is left."""
    subjects = [s for s in subjects if s.accuracy and not math.isnan(s.params_left)]
    domains = list(dict.fromkeys(name for s in subjects for name in s.accuracy))
    shares = [s.params_left for s in subjects]
    own = ", own weights too" if any(s.stored is not None for s in subjects) else ""
    if len(subjects) < 2 or len({round(x, 3) for x in shares}) < 2:
        return None

    def draw(paint: Paint) -> Any:
        figure, axes = blank(paint, 3.4 + legend_room(len(domains), 3))
        for index, name in enumerate(domains):
            points = sorted(
                (100 * x, 100 * s.accuracy[name])
                for x, s in zip(shares, subjects, strict=True)
                if name in s.accuracy
            )
            colour, style = paint.of(index), _style(index, paint)
            axes.plot(
                *zip(*points, strict=True), style, color=colour, marker="o", label=short(name)
            )
        axes.set_xlabel(f"parameters left{own}, % of the backbone's")
        axes.set_ylabel("accuracy, %")
        figure.legend(loc="outside lower center", ncols=3)
        return figure

    rows = [("run", f"parameters left{own}", *domains)]
    for share, s in zip(shares, subjects, strict=True):
        found = (f"{s.accuracy[n]:.2%}" if n in s.accuracy else "-" for n in domains)
        rows.append((s.name, f"{share:.1%}", *found))
    alt = f"Accuracy of {len(domains)} domains in {len(subjects)} runs of different size"
    return Chart("accuracy-by-budget", "Accuracy by budget", alt, draw, tuple(rows))


def frontier_charts(subjects: Sequence[Subject]) -> list[Chart]:
    """Mean accuracy against what each network costs, for whatever is known of two or more.

    Times are of one graph's kind on one machine: that which most of the networks have.
    """
    kinds = Counter(x for s in subjects if s.accuracy for x in s.milliseconds())
    kind = kinds.most_common(1)[0][0] if kinds else ""
    costs: list[tuple[str, str, Callable[[Subject], float | None], str]] = [
        (
            "latency",
            "Accuracy and latency",
            lambda s: s.milliseconds().get(kind),
            f"median, 1 image, ms ({kind})",
        ),
        ("size", "Accuracy and size", _mebibytes, "fp32 graph and domains' own weights, MiB"),
        (
            "macs",
            "Accuracy and operations",
            lambda s: s.macs[1] / 1e6,
            "MACs of an image, millions",
        ),
    ]
    charts = [_frontier(subjects, *cost) for cost in costs]
    return [chart for chart in charts if chart is not None]


def _mebibytes(subject: Subject) -> float | None:
    return None if subject.file_bytes is None else subject.file_bytes / 2**20


def _frontier(
    subjects: Sequence[Subject],
    name: str,
    title: str,
    cost: Callable[[Subject], float | None],
    label: str,
) -> Chart | None:
    known = [(s, x) for s in subjects if (x := cost(s)) is not None and s.accuracy]
    # Means over other domains are no better and no worse.
    shared = (
        [n for n in known[0][0].accuracy if all(n in s.accuracy for s, _ in known)] if known else []
    )
    if len(known) < 2 or not shared:
        return None
    every = all(len(s.accuracy) == len(shared) for s, _ in known)
    mean = "mean accuracy" if every else f"mean accuracy of {', '.join(shared)}"
    points = [(s, x, float(np.mean([s.accuracy[n] for n in shared]))) for s, x in known]
    # Better than every cheaper one: those are joined by the line.
    best, front = -1.0, []
    for _, x, y in sorted(points, key=lambda point: (point[1], -point[2])):
        if y > best:
            best = y
            front.append((x, 100 * best))

    def draw(paint: Paint) -> Any:
        figure, axes = blank(paint, 3.4 + legend_room(len(known), 2))
        axes.step(*zip(*front, strict=True), where="post", color=paint.grid, lw=2)
        for index, (s, x, y) in enumerate(points):
            axes.plot(x, 100 * y, "o", ms=8, color=paint.of(index), label=short(s.name))
        axes.set_xlim(0, 1.1 * max(x for _, x in known))
        axes.set_xlabel(short(label, 64))
        axes.set_ylabel(f"{short(mean, 40)}, %")
        figure.legend(loc="outside lower center", ncols=2)
        return figure

    rows = [("run", label, mean)]
    rows += [(s.name, f"{x:,.2f}", f"{y:.2%}") for s, x, y in points]
    alt = f"{mean}: " + "; ".join(f"{s.name}: {x:,.2f} {label}, {y:.1%}" for s, x, y in points)
    return Chart(f"frontier-{name}", title, alt, draw, tuple(rows))


def curve_charts(subject: Subject) -> list[Chart]:
    """Loss, accuracy, budget and λ over the epochs, of whatever the log has."""
    steps = [line for line in subject.log if "cost" in line]
    if not steps:
        return []
    names = list(subject.accuracy) or subject.unfinished
    marks = _phase_marks(subject.log)
    total = max(line["step"] for line in steps) + 1
    per_epoch = total / subject.epochs[1] if subject.epochs[1] else 1.0
    unit = "epochs" if subject.epochs[1] else "steps"

    def over(key: str, lines: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
        pairs = [(x["step"], x[key]) for x in lines if isinstance(x.get(key), (int, float))]
        places, values = np.array(pairs, float).reshape(-1, 2).T
        parts = np.array_split(np.arange(len(places)), min(len(places), MOST_POINTS) or 1)
        means = [(places[p].mean(), values[p].mean()) for p in parts if len(p)]
        x, y = np.array(means, float).reshape(-1, 2).T
        return x / per_epoch, y

    def chart(
        name: str, title: str, keys: Mapping[str, str], label: str, scale: float = 1.0, **axis: Any
    ) -> Chart | None:
        curves = {told: over(key, subject.log) for told, key in keys.items()}
        curves = {told: curve for told, curve in curves.items() if len(curve[0])}
        if not curves:
            return None

        def draw(paint: Paint) -> Any:
            figure, axes = blank(paint, 3.0 + legend_room(len(curves), 3))
            for index, (told, (x, y)) in enumerate(curves.items()):
                point = "o" if len(x) == 1 else None
                style = _style(index, paint)
                colour = paint.of(index)
                axes.plot(
                    x, scale * y, style, color=colour, marker=point, lw=1.6, label=short(told)
                )
            for place in marks:
                axes.axvline(place / per_epoch, color=paint.muted, lw=1, ls=":")
            axes.set(xlabel=unit, ylabel=label, **axis)
            axes.set_xlim(left=0)
            figure.legend(loc="outside lower center", ncols=3)
            return figure

        rows = [(unit, "first", "last")]
        rows += [(k, f"{scale * y[0]:.4g}", f"{scale * y[-1]:.4g}") for k, (_, y) in curves.items()]
        ends = "; ".join(f"{k} from {a} to {b}" for k, a, b in rows[1:])
        return Chart(f"curve-{name}", title, f"{title} over {unit}: {ends}", draw, tuple(rows))

    lambdas = {"shared": "lambda", "the network's": "lambda_network"}
    lambdas |= {name: f"lambda/{name}" for name in names}
    validation = {name: f"validation_accuracy/{name}" for name in names}
    some_tests = {name: f"test_part_accuracy/{name}" for name in names}
    older = {name: f"validation/{name}" for name in names}  # of test images, then called so
    training = {name: f"train_accuracy/{name}" for name in names}
    budget = {"what the switches leave": "cost", "target": "target"}
    charts = [
        chart("loss", "Training loss", {n: f"loss/{n}" for n in names}, "cross-entropy"),
        chart("validation", "Accuracy on validation images", validation, "%", 100.0),
        chart("test-part", "Accuracy on some test images", some_tests, "%", 100.0)
        or chart("test-part", "Accuracy on some test images", older, "%", 100.0),
        chart("training", "Accuracy on training batches", training, "%", 100.0),
        chart("budget", "Cost of the union", budget, "% of the backbone's", 100.0, ylim=(0, 105)),
        chart("lambda", "λ, the price of the budget", lambdas, "λ"),
    ]
    return [x for x in charts if x is not None]


def _phase_marks(log: Sequence[Mapping[str, Any]]) -> list[int]:
    """The steps at which another phase begins, as far as the log tells."""
    marks, before = [], None
    for line in log:
        if "phase" in line:
            if before is not None and line["phase"] != before[1]:
                marks.append(before[0])
            before = (line["step"], line["phase"])
    return marks


def _style(index: int, paint: Paint) -> str:
    return ("-", "--", ":")[index // len(paint.series) % 3]
