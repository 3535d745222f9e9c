"""Folders within folders, links followed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from prunion.runtime.base import reason_of
from prunion.runtime.errors import DataError

__all__ = ["entries_of", "folders_below", "is_within"]

Entries = list[os.DirEntry[str]]


def folders_below(
    top: str,
    enters: Callable[[os.DirEntry[str]], bool],
    passed: Callable[[], None] = lambda: None,
) -> Iterator[tuple[str, Entries]]:
    """A folder and those below it with what they hold, in the order of their names.

    One that is reached twice, by a link beside it or by one that leads back, counts once.

    Args:
        enters: whether an entry is a folder that counts.
        passed: is called for each that counted already.

    Raises DataError for a folder that cannot be opened.
    """
    seen: set[str] = set()
    waiting = [(top, os.path.realpath(top))]
    while waiting:
        place, parent = waiting.pop()
        real = os.path.realpath(place)
        # What holds its own place would bring in all that lies beside it.
        if real in seen or (seen and is_within(parent, real)):
            passed()
            continue
        seen.add(real)
        entries = entries_of(place)
        yield place, entries
        names = sorted((entry.name for entry in entries if enters(entry)), reverse=True)
        waiting += [(os.path.join(place, name), real) for name in names]


def entries_of(folder: str) -> Entries:
    """What a folder holds; of "" what the working folder does. Raises DataError."""
    try:
        with os.scandir(folder or os.curdir) as entries:
            return list(entries)
    except OSError as exc:
        reason = exc.strerror or reason_of(exc)
        raise DataError(f"{folder} cannot be opened ({reason}): correct the path") from None


def is_within(place: str, folder: str) -> bool:
    """Whether a place is a folder or lies below it; both without links."""
    return os.path.join(place, "").startswith(os.path.join(folder, ""))
