"""Waiting: for a turn; for work, which is given up after a time, or when nobody wants it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable
from typing import Any, TypeVar

__all__ = ["Stop", "Turns", "within"]

AT_ONCE = 8
DECAY = 0.9
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


class Turns:
    """Requests begin a few at a time, in the order in which they came; of one event loop.

    Without it a server with more to do than it can begins them all at once: a turn of its event
    loop then takes as long as hundreds of requests do, and who is to be refused hears of it late.

    Args:
        most: how many begin in one turn of the loop.
    """

    def __init__(self, most: int = AT_ONCE) -> None:
        self.most = self._left = most
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._scheduled = False
        self._pace = 0.0  # seconds in which one request began lately, while others waited
        self._turned = 0.0

    @property
    def seconds(self) -> float:
        """About how long a request that comes now waits for its turn."""
        return len(self._waiting) * self._pace

    async def mine(self) -> None:
        """Wait for one."""
        loop = asyncio.get_running_loop()
        if not self._scheduled:
            self._scheduled, self._turned = True, loop.time()
            loop.call_soon(self._turn)
        if self._left and not self._waiting:
            self._left -= 1
            return
        future: asyncio.Future[None] = loop.create_future()
        self._waiting.append(future)
        await future

    def _turn(self) -> None:
        self._scheduled, self._left = False, self.most
        if not self._waiting:
            return
        loop = asyncio.get_running_loop()
        while self._waiting and self._left:
            future = self._waiting.popleft()
            if not future.done():  # or its client has gone
                future.set_result(None)
                self._left -= 1
        now = loop.time()
        pace = (now - self._turned) / max(self.most - self._left, 1)
        self._pace = DECAY * self._pace + (1 - DECAY) * pace
        self._scheduled, self._turned = True, now
        loop.call_soon(self._turn)
