"""Hand freed memory back between an export's steps, so that their peaks do not add up."""

from __future__ import annotations

import ctypes
import gc
import sys

__all__ = ["free_memory"]


def free_memory() -> None:
    """Collect cycles (a traced program is full of them) and let glibc return what is free.

    Elsewhere than on glibc only the first.
    """
    gc.collect()
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)
