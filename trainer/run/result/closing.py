"""What a run prints at its end, part by part, as lines of text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from prunion.trainer.run.result.stored import COUNTED

__all__ = [
    "accuracy_lines",
    "branch_lines",
    "floor_lines",
    "own_lines",
    "score_lines",
    "stored_lines",
]


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


def stored_lines(stored: Mapping[str, float] | None) -> list[str]:
    """What domains with weights of their own take."""
    return [f"parameters {stored['params']:.3f} × the backbone's, {COUNTED}"] if stored else []


def floor_lines(floor: Mapping[str, Any] | None) -> list[str]:
    """The share of every width that was to stay."""
    if floor is None:
        return []
    told = f"{floor['layer']} keeps {floor['least']:.1%}"
    met = "met" if floor["met"] else f"NOT met, {told}"
    return [f"floor {floor['asked']:.1%} of every layer's width: {met}"]


def own_lines(own: Mapping[str, Any] | None, accuracy: Mapping[str, float]) -> list[str]:
    """What each domain uses of the union, and what that changed of its accuracy."""
    if own is None:
        return []
    whole = own.get("accuracy_with_union", {})

    def change(name: str) -> str:
        return f" ({whole[name]:.1%} → {accuracy[name]:.1%})" if name in whole else ""

    each = ", ".join(f"{name} {share:.1%}{change(name)}" for name, share in own["macs"].items())
    met = "met" if own["met"] else "NOT met, so that every channel of it stays with a domain"
    settled = own.get("macs_of_settled", {})
    asked = f"own {own['asked']:.1%}: {met}"
    if settled:
        most = max(settled.values())
        asked = f"of the union's that they settled with up to {most:.1%}; {asked}"
    return [f"of the union's MACs a domain alone uses: {each} ({asked})"]


def branch_lines(found: Mapping[str, Any] | None) -> list[str]:
    """Whose first steps a run of a sweep has."""
    return [f"its first {found['steps']:,} steps are those of {found['run']}"] if found else []


def score_lines(scores: Mapping[str, float]) -> list[str]:
    """The papers' scores, in one line."""
    told = [f"{k} {v:,.3g}" if v < 100 else f"{k} {v:,.0f}" for k, v in scores.items()]
    return [", ".join(told)] if told else []
