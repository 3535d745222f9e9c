"""What the lines of a benchmark's file were made with, held against what is asked for now.

A line that is there is not made again; what its key does not say of how it was made is noted in it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prunion.runtime.errors import InputError

__all__ = ["check_asked"]

log = logging.getLogger(__name__)


def check_asked(
    lines: Sequence[Mapping[str, Any]],
    asked: Mapping[str, Any],
    path: Path,
    *,
    key: str = "key",
    other: str = "another file",
) -> None:
    """Refuse lines that were made with other options; an earlier version did not note them.

    Args:
        lines: those that are asked for, each with its `asked`.
        key: by which a line is called.
        other: what one would give to have both.

    Raises InputError, which names the line and both values.
    """
    now = json.loads(json.dumps(asked))
    for line in lines:
        for name, was in line.get("asked", {}).items():
            if was != now.get(name):
                raise InputError(
                    f"{path}: {line[key]} was made with {name} {was}, and {now.get(name)} is "
                    f"asked for: give what it was made with, or {other}"
                )
    if any("asked" not in line for line in lines):
        log.warning("%s has lines of an earlier version, taken as they are", path)
