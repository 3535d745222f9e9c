"""What another thread or process does, waited for; a clock that only moves when it is told to.

An answer is here before the server is done with its request: what the server counts, logs or lets
go of after it is waited for, and long, because a busy machine may give the other side no time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

__all__ = ["LONG", "Clock", "until", "until_async"]

LONG = 60.0  # seconds for what takes milliseconds, unless it never comes


def until(condition: Callable[[], object], seconds: float = LONG) -> None:
    """Return when the condition holds. Raises AssertionError when it does not in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"it did not come in {seconds:g} s"
        time.sleep(0.005)


async def until_async(condition: Callable[[], object], seconds: float = LONG) -> None:
    """As `until`, on an event loop."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"it did not come in {seconds:g} s"
        await asyncio.sleep(0.005)


class Clock:
    """Stands in for the module `time`: nothing takes any time but what sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def perf_counter(self) -> float:
        return self.now

    monotonic = time = perf_counter
