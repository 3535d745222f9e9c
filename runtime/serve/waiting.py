"""Work that is given up: after a time, or because nobody wants it any more."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

__all__ = ["Stop", "within"]

Result = TypeVar("Result")


class Stop:
    """Cancels the task that it was made in, and knows whether it did."""

    def __init__(self) -> None:
        self.task: Any = asyncio.current_task()
        self.called = False

    def __call__(self) -> None:
        self.called = True
        self.task.cancel()

    def took_back(self) -> bool:
        """Whether the cancellation that arrived is this one alone; it counts no more then."""
        if not self.called:
            return False
        uncancel = getattr(self.task, "uncancel", None)  # Python 3.11 counts them
        return uncancel is None or uncancel() == 0


async def within(seconds: float, work: Awaitable[Result]) -> Result:
    """What `work` gives, unless it takes longer: then asyncio.TimeoutError.

    As `asyncio.wait_for`, but in the task that asks: a task of its own, as Python before 3.12
    makes it, costs every request two turns of the event loop.
    """
    stop = Stop()
    timer = asyncio.get_running_loop().call_later(seconds, stop)
    try:
        return await work
    except asyncio.CancelledError:
        if stop.took_back():
            raise asyncio.TimeoutError from None
        raise
    finally:
        timer.cancel()
