"""Hand freed memory back between an export's steps, so that their peaks do not add up."""

from __future__ import annotations

import ctypes
import gc
import sys

__all__ = ["free_memory", "keep_freed_memory"]


def free_memory() -> None:
    """Collect cycles (a traced program is full of them) and let glibc return what is free.

    Elsewhere than on glibc only the first.
    """
    gc.collect()
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)


# From glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> None:
    """Tell glibc not to hand large blocks back after every step; elsewhere does nothing.

    By default every activation over 32 MB is mapped and cleared anew each step, which took a
    quarter of a CPU step's time.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_TOP_PAD, 256 << 20)
