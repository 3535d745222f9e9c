"""A bundle that was just written, opened as a runtime will open it, before it takes its place."""

from __future__ import annotations

from pathlib import Path

from prunion.runtime.base import PRECISIONS
from prunion.runtime.bundle import open_bundle
from prunion.runtime.errors import PrunionError, VerificationError
from prunion.runtime.graph import form_of

__all__ = ["check_opens"]


def check_opens(folder: Path) -> None:
    """Raise VerificationError if the bundle in `folder`, or one of its graphs, cannot be opened.

    The reader has limits of its own, against files that somebody made to harm it.
    """
    try:
        bundle = open_bundle(folder)
        try:
            for precision in bundle.manifest.graphs:
                form_of(bundle, PRECISIONS[precision])
        finally:
            bundle.close()
    except PrunionError as exc:
        reason = str(exc).replace(f"{folder}/", "")
        raise VerificationError(
            f"no runtime could open the bundle ({reason}); nothing was written"
        ) from None
