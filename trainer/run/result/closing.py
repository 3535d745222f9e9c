"""What a run prints at its end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from prunion.runtime.base import asked_text
from prunion.runtime.bundle import cost_text
from prunion.trainer.run.result.stored import COUNTED
from prunion.trainer.run.result.usage import sharing_lines, sparsity_lines

if TYPE_CHECKING:
    from prunion.trainer.run.result.result import RunResult

__all__ = ["accuracy_lines", "closing_table"]


def closing_table(result: RunResult) -> str:
    """What a run prints at its end, lines of text."""
    lines = accuracy_lines(
        result.accuracy,
        result.accuracy_before,
        result.baseline,
        result.epochs,
        validated=result.validated,
    )
    budget, (p0, p1), (m0, m1) = result.budget, result.params, result.macs
    met = "met" if budget["met"] else "NOT met"
    names = list(result.accuracy)
    kept, of = (
        ("slices in use", "slices") if budget.get("slices") else ("kept channels", "channels")
    )
    matrix = np.array([[result.sharing_matrix[a][b] for b in names] for a in names])
    lines += [
        *_stored_lines(result),
        f"{'the trunk alone: ' if result.stored else ''}parameters {p0:,} → {p1:,} "
        f"({p1 / p0:.1%}), MACs {m0:,} → {m1:,} ({m1 / m0:.1%})",
        f"budget {budget['kind']} {asked_text(budget['asked'])}: {cost_text(budget)} {met} "
        f"({result.uncut:.1%} before the last cut); "
        f"{result.shared:.0%} of the {kept} were chosen by every domain; "
        f"{result.returned} switches came back on while learning",
        *_floor_lines(result),
        *_own_lines(result),
        *_branch_lines(result),
        *sparsity_lines(result.sparsity),
        *sharing_lines(names, matrix, of),
        *([", ".join(_scores(result))] if result.score else []),
        *(f"verdict: {line}" for line in (result.verdict.lines if result.verdict else ())),
        f"{result.seconds:.0f} s; checkpoint in {result.folder / 'checkpoint'}",
    ]
    return "\n".join(lines)


def accuracy_lines(
    accuracy: Mapping[str, float],
    before: Mapping[str, float],
    baseline: Mapping[str, float] | None,
    epochs: tuple[int, int],
    *,
    validated: bool = False,
) -> list[str]:
    """Accuracy by domain as lines of text, beside the same network with every channel.

    Args:
        before: every channel, after warm-up. It has learned for less long, so that it is no rival:
            it stands aside, and is left out where there is a `baseline`.
        baseline: every channel, trained as long.
        epochs: of warm-up, and of the whole run.
        validated: whether `before` is of validation images, where a domain has some.
    """
    width = max(20, *(len(name) for name in accuracy))
    if baseline is not None:
        lines = [f"{'domain':<{width}} {'every channel':>14} {'pruned':>8} {'points':>8}"]
        rows = [(name, baseline[name], value) for name, value in accuracy.items()]
        if len(rows) > 1:  # a domain may be called so too
            rows.append(("mean", *np.array([row[1:] for row in rows]).mean(0)))
        lines += [
            f"{name:<{width}} {whole:>14.1%} {value:>8.1%} {100 * (value - whole):>+8.2f}"
            for name, whole, value in rows
        ]
        return [*lines, f"every channel: the same run without pruning, {epochs[1]} epochs too"]
    told = f"{'(after warm-up)':>17}" if before else ""
    lines = [f"{'domain':<{width}} {'pruned':>8}{told}"]
    for name, value in accuracy.items():
        beside = f"({before[name]:.1%})" if before else ""
        lines.append(f"{name:<{width}} {value:>8.1%}{beside:>17}".rstrip())
    if before:
        images = ", on validation images where there are some" if validated else ""
        lines.append(
            f"after warm-up{images}: every channel, {epochs[0]} of {epochs[1]} epochs trained: "
            "no rival"
        )
    return lines


def _stored_lines(result: RunResult) -> list[str]:
    if result.stored is None:
        return []
    return [f"parameters {result.stored['params']:.3f} × the backbone's, {COUNTED}"]


def _floor_lines(result: RunResult) -> list[str]:
    floor = result.floor
    if floor is None:
        return []
    told = f"{floor['layer']} keeps {floor['least']:.1%}"
    met = "met" if floor["met"] else f"NOT met, {told}"
    return [f"floor {floor['asked']:.1%} of every layer's width: {met}"]


def _own_lines(result: RunResult) -> list[str]:
    if result.own is None:
        return []
    own, whole = result.own, result.own.get("accuracy_with_union", {})

    def change(name: str) -> str:
        return f" ({whole[name]:.1%} → {result.accuracy[name]:.1%})" if name in whole else ""

    each = ", ".join(f"{name} {share:.1%}{change(name)}" for name, share in own["macs"].items())
    met = "met" if own["met"] else "NOT met, so that every channel of it stays with a domain"
    settled = own.get("macs_of_settled", {})
    asked = f"own {own['asked']:.1%}: {met}"
    if settled:
        most = max(settled.values())
        asked = f"of the union's that they settled with up to {most:.1%}; {asked}"
    return [f"of the union's MACs a domain alone uses: {each} ({asked})"]


def _branch_lines(result: RunResult) -> list[str]:
    found = result.branched_from
    return [f"its first {found['steps']:,} steps are those of {found['run']}"] if found else []


def _scores(result: RunResult) -> list[str]:
    return [f"{k} {v:,.3g}" if v < 100 else f"{k} {v:,.0f}" for k, v in result.scores.items()]
