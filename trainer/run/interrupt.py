"""SIGTERM and SIGINT end a run at the next step, with everything it has learned saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["StopRequest", "StoppedError", "stop_signals"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StoppedError(Exception):
    """A run was asked to stop and has saved its state.

    Attributes:
        code: exit code that tells so: 130 after SIGINT, 143 after SIGTERM.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class StopRequest:
    """Whether a signal has come; `now` makes the next one act at once."""

    def __init__(self) -> None:
        self.signal = 0
        self.now = ""

    def __bool__(self) -> bool:
        return self.signal != 0

    def stopped(self, where: str) -> StoppedError:
        """What to raise for the signal that came, here or to another rank."""
        self.signal = self.signal or signal.SIGTERM
        name = signal.Signals(self.signal).name
        return StoppedError(f"stopped by {name} {where}", 128 + self.signal)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The signal handler: the first signal is noted, a second SIGINT interrupts at once."""
        again, self.signal = bool(self), number
        if self.now:
            raise self.stopped(self.now)
        if again and number == signal.SIGINT:
            raise KeyboardInterrupt


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Note the two signals instead of dying of them; does nothing outside the main thread."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request.handle) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
