"""Time limits and hang-ups end the work itself, in the task that asked for it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs prunion[serve]")
from prunion.runtime.serve.http import body
from prunion.runtime.serve.http.body import ClientGone, unless_gone
from prunion.runtime.serve.waiting import within
from tests.support.waiting import LONG


class Client:
    """A request whose client hangs up after `seconds`, or never."""

    def __init__(self, seconds: float | None = None) -> None:
        self.seconds = seconds

    async def receive(self) -> dict[str, str]:
        if self.seconds is None:
            await asyncio.Event().wait()
        await asyncio.sleep(self.seconds or 0)
        return {"type": "http.disconnect"}


def waits(work: Any, how: str) -> Any:
    return within(5, work) if how == "within" else unless_gone(Client(), work)  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["within", "unless_gone"])
def test_waiting_takes_no_task_of_its_own(how: str) -> None:
    """Each would cost every request two turns of the event loop."""

    async def run() -> None:
        async def work() -> Any:
            return asyncio.current_task()

        assert await waits(work(), how) is asyncio.current_task()
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(run())


@pytest.mark.parametrize("how", ["within", "unless_gone"])
def test_errors_and_cancellation_pass(how: str) -> None:
    async def fails() -> None:
        raise ValueError("its own")

    async def run() -> None:
        with pytest.raises(ValueError, match="its own"):
            await waits(fails(), how)
        outer = asyncio.ensure_future(waits(asyncio.sleep(5), how))
        await asyncio.sleep(0)
        outer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await outer

    asyncio.run(run())


def test_what_takes_too_long_is_ended() -> None:
    ended = []

    async def work() -> None:
        try:
            await asyncio.sleep(5)
        finally:
            ended.append(True)

    async def run() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await within(0.01, work())
        assert ended
        # The task goes on as if nothing had been: neither limit reaches what comes after.
        assert await within(0.5, asyncio.sleep(0, "after")) == "after"
        await asyncio.sleep(0.6)

    asyncio.run(run())


def test_a_hang_up_ends_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "QUICK", 0.01)

    async def run() -> None:
        gone: Any = Client(0.02)
        with pytest.raises(ClientGone):
            await unless_gone(gone, asyncio.sleep(LONG))
        waits: Any = Client(LONG)
        assert await unless_gone(waits, asyncio.sleep(0.05, "answered")) == "answered"
        await asyncio.sleep(0)  # the look for a hang-up ends in its own turn
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(run())
