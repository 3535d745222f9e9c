"""A write that failed is told in one line that names the output, wherever the error comes from."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prunion.runtime.errors import OutputError

__all__ = ["noted", "told_write"]

# Wherever these come from while something is written, it is the writing that failed.
QUOTA = getattr(errno, "EDQUOT", -1)  # Windows knows none
FULL = (errno.ENOSPC, QUOTA, errno.EFBIG, errno.EIO, errno.EROFS)
FIXES = dict.fromkeys((errno.ENOSPC, QUOTA), "free some space")


@contextmanager
def told_write(path: Path) -> Iterator[list[Exception]]:
    """Turn a write that failed into one line that names `path`.

    Yields a list for the errors of a caller's block, which may read other files too: of these only
    what is sure to be its writing counts.
    """
    of_block: list[Exception] = []
    try:
        yield of_block
    except OutputError as exc:  # of a file in the temporary folder: name its place to be
        hidden = re.escape(str(path.with_name(f".{path.name}."))) + r"[0-9a-f]{16}\.tmp"
        raise OutputError(re.sub(hidden, lambda _: str(path), str(exc))) from None
    except Exception as exc:
        inside = str(path.with_name(f".{path.name}.")) if exc in of_block else ""
        if (number := _failed_write(exc, inside)) is None:
            raise
        fix = FIXES.get(number, "choose another place")
        raise OutputError(
            f"{path} cannot be written ({os.strerror(number)}): {fix} and try again"
        ) from None


@contextmanager
def noted(errors: list[Exception]) -> Iterator[None]:
    """Note the error that ends the block, for `told_write` around it."""
    try:
        yield
    except Exception as exc:
        errors.append(exc)
        raise


def _failed_write(exc: Exception, inside: str) -> int | None:
    """The error's number, if a write failed: any below the paths that begin with `inside`."""
    if isinstance(exc, OSError):
        own = not inside or str(exc.filename).startswith(inside)
        return exc.errno if own or exc.errno in FULL else None
    # safetensors has an error of its own, with the number in its text.
    found = re.search(r"\(os error (\d+)\)", str(exc))
    return number if found and (number := int(found[1])) in FULL else None
