"""How glibc's allocator hands freed memory back: at once after an export's step, never in training.

Elsewhere than on Linux with glibc (musl has neither call) the process keeps what its own allocator
does.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable

__all__ = ["free_memory", "keep_freed_memory"]

# From glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def free_memory() -> None:
    """Collect cycles (a traced program is full of them) and give back what is free then.

    Called between the steps of an export, so that their peaks do not add up.
    """
    gc.collect()
    trim = _glibc("malloc_trim")
    if trim is not None:
        trim(0)


def keep_freed_memory() -> None:
    """Keep freed memory for the next step of training, which takes as much again.

    By default glibc maps and clears every block over 32 MB anew: of a step on a CPU that was a
    quarter of the time.
    """
    mallopt = _glibc("mallopt")
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_TOP_PAD, 256 << 20)


def _glibc(name: str) -> Callable[..., int] | None:
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), name, None)
