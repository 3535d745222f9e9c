"""Whether rows of one seed that warm up alike came out of warm-up alike.

Until the first channel goes rows of the same settings are one run. Where their accuracies after
warm-up differ, they were made on other machines, by other code, or on a GPU that does not repeat
itself, and what differs between them at the end is not of their methods alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prunion.benchmarks.learning.plan.catalogue import ROWS, settings_of
from prunion.benchmarks.learning.plan.key import RowKey

__all__ = ["warm_up_notes"]

# Of `[train]`: they act once channels go.
AFTER = ("recipe", "ranking", "ramp_shape", "sharing", "cut")
Line = dict[str, Any]


def warm_up_notes(lines: Sequence[Line]) -> list[str]:
    """A warning for each seed and settings whose rows have several accuracies after warm-up."""
    alike: dict[str, dict[str, list[str]]] = {}
    for line in lines:
        key, before = RowKey.of(line), line.get("before")
        if not before or not _warms_up_as_a_union(key.row):
            continue
        train = {name: value for name, value in ROWS[key.row].train.items() if name not in AFTER}
        kind = f"{key.backbone}, {key.seed}, {_settings(line['key'])}, {sorted(train.items())}"
        found = alike.setdefault(kind, {})
        found.setdefault(f"{100 * sum(before.values()) / len(before):.2f}", []).append(key.row)
    return [
        f"warning: {', '.join(kind.split(', ')[:2])} did not come out of warm-up alike: "
        + "; ".join(f"{value} of {', '.join(names)}" for value, names in found.items())
        for kind, found in alike.items()
        if len(found) > 1
    ]


def _settings(key: str) -> str:
    """What was set for a row that acts before channels go: a ramp's shape is not."""
    parts = settings_of(key).split(".")
    return ".".join(part for part in parts if part.partition("-")[0] not in AFTER)


def _warms_up_as_a_union(name: str) -> bool:
    """Not a network of another shape or of one domain, nor a recipe that warms up otherwise."""
    if name not in ROWS:
        return False
    row = ROWS[name]
    return not row.separate and row.slim_first is None and row.train.get("recipe") != "paper"
