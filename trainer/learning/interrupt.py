"""SIGTERM and SIGINT end a run at the next step, with everything it has learned saved."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from prunion.runtime.errors import StoppedError

__all__ = ["StopRequest", "StoppedError", "exit_when_stopped", "stop_signals"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether a signal has come, and which.

    Attributes:
        now: while everything is saved, what to say of it: a signal then acts at once.
    """

    def __init__(self) -> None:
        self.signal = 0
        self.now = ""
        self.process = os.getpid()

    def __bool__(self) -> bool:
        return self.signal != 0

    def stopped(self, where: str) -> StoppedError:
        """What to raise for the signal that came, to this process or to another of the run."""
        self.signal = self.signal or signal.SIGTERM
        name = signal.Signals(self.signal).name
        return StoppedError(f"stopped by {name} {where}", 128 + self.signal)

    def at_once(self, where: str) -> None:
        """Let signals act where they come, for everything is saved, as `where` says.

        Raises StoppedError if one came before, after the last step that looked for it.
        """
        self.now = where
        if self:
            raise self.stopped(where)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The signal handler: the first signal is noted, a second SIGINT interrupts at once."""
        # Ctrl-C also reaches the workers that were forked to read images: the run ends them.
        if os.getpid() != self.process:
            return
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


@contextmanager
def exit_when_stopped() -> Iterator[None]:
    """For a command: StoppedError ends the process with 128 + the signal, as the shell expects."""
    try:
        yield
    except StoppedError as stop:
        print(stop, file=sys.stderr)
        raise SystemExit(stop.code) from None
