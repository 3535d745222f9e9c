"""What the log of a run has, `metrics.jsonl`: also of one that was stopped, or trains still."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prunion.runtime.base import json_of

__all__ = ["domains_of_log", "last_scores", "last_sharing", "read_log"]

MAX_LOG_BYTES = 1 << 30


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log that have a step; none where there is no log."""
    if not path.is_file() or path.stat().st_size > MAX_LOG_BYTES:
        return []
    lines = []
    for line in path.read_text("utf-8", errors="replace").splitlines():
        try:
            value = json_of(line)
        except ValueError:  # half a line of a run that was killed
            continue
        if isinstance(value, dict) and isinstance(value.get("step"), int):
            lines.append(value)
    return lines


def domains_of_log(log: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The domains whose losses a log has, in their order."""
    keys = (key for line in log for key in line if key.startswith("loss/"))
    return tuple(dict.fromkeys(key.removeprefix("loss/") for key in keys))


def last_sharing(
    log: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> dict[str, dict[str, float]]:
    """The matrix that the log of an epoch has; runs of before there was a record have it too."""
    for line in reversed(log):
        if f"sharing/{names[0]}/{names[0]}" in line:
            return {a: {b: float(line[f"sharing/{a}/{b}"]) for b in names} for a in names}
    return {}


def last_scores(result: Mapping[str, Any], log: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """S, S_O, S_P and S_E as far as a run's result has them, or else its log."""
    given = result.get("score") or {}
    if not given and log:
        given = {key.removeprefix("score/"): v for key, v in log[-1].items() if "score/" in key}
    return {
        key: float(given[key]) for key in ("S", "S_O", "S_P", "S_E") if given.get(key) is not None
    }
