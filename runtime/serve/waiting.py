"""Work that is given up: after a time, or because nobody wants it any more."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Generator
from functools import partial
from typing import Any, NoReturn, TypeVar

__all__ = ["Stop", "leave", "unless_stopped", "within"]

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


class _Rest(Awaitable[Result]):
    """Work that has begun and waits for `first`."""

    def __init__(self, first: Any, steps: Generator[Any, Any, Result]) -> None:
        self.first = first
        self.steps = steps

    def __await__(self) -> Generator[Any, Any, Result]:
        waits = self.first
        while True:
            try:
                sent = yield waits
            except BaseException as exc:
                step = partial(self.steps.throw, exc)
            else:
                step = partial(self.steps.send, sent)
            try:
                waits = step()
            except StopIteration as exc:
                found: Result = exc.value
                return found


async def within(seconds: float, work: Awaitable[Result]) -> Result:
    """What `work` gives, unless it takes longer: then asyncio.TimeoutError.

    As `asyncio.wait_for`, but in the task that asks: a task of its own, as Python before 3.12
    makes it, costs every request two turns of the event loop. Work that waits for nothing is timed
    by nothing.
    """
    steps = work.__await__()
    try:
        first = next(steps)
    except StopIteration as exc:
        found: Result = exc.value
        return found
    stop = Stop()
    timer = asyncio.get_running_loop().call_later(seconds, stop)
    try:
        return await _Rest(first, steps)
    except asyncio.CancelledError:
        if stop.took_back():
            raise asyncio.TimeoutError from None
        raise
    finally:
        timer.cancel()


async def unless_stopped(stop: asyncio.Event, work: Callable[[], Result]) -> Result:
    """What `work` gives in a thread; where a process is to stop before, it ends there and then."""
    working = asyncio.ensure_future(asyncio.to_thread(work))
    stopped = asyncio.ensure_future(stop.wait())
    await asyncio.wait({working, stopped}, return_when=asyncio.FIRST_COMPLETED)
    if not working.done():
        leave("what was being loaded is given up")
    stopped.cancel()
    return await working


def leave(why: str) -> NoReturn:
    """End this process at once, where a thread still works.

    It cannot be ended: an orderly end would wait for it, and a session that it makes after that
    would abort the process.
    """
    logging.getLogger("prunion.serve").warning("stopped: %s", why)
    logging.shutdown()
    sys.stderr.flush()
    os._exit(0)
