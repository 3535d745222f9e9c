"""Ctrl-C where no exception can rise: it waits until one can.

An exception that rises out of Python code inside a library's C++ initialisers ends the process by
abort, with a trace of C++ in place of the one line that an interrupt has. Out of a destructor, a
weak reference's callback or a hook of the garbage collector it rises nowhere: Python prints its
trace and goes on, and the interrupt is lost.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType

from prunion.runtime.errors import StoppedError

__all__ = ["defer_interrupts"]

SOON = 0.05  # seconds until it is tried again
IMPORTING = "<frozen importlib._bootstrap"  # and `_bootstrap_external`


def defer_interrupts() -> None:
    """From now on SIGINT raises KeyboardInterrupt as always, but for no import in progress.

    Nothing changes where the process ignores SIGINT, as one does that a shell put in the
    background, or where somebody else handles it.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
        _Unraised.install()


class _Unraised:
    """A hook that sends a signal again whose exception could not rise where it came."""

    def __init__(self) -> None:
        self.other = sys.unraisablehook

    @classmethod
    def install(cls) -> None:
        if not isinstance(sys.unraisablehook, cls):
            sys.unraisablehook = cls()

    def __call__(self, unraisable: sys.UnraisableHookArgs) -> None:
        found = unraisable.exc_value
        if isinstance(found, KeyboardInterrupt):
            _ask_soon(signal.SIGINT)
        elif isinstance(found, StoppedError):
            _ask_soon(found.code - 128)
        else:
            self.other(unraisable)


def _interrupt(number: int, frame: FrameType | None) -> None:
    outer = frame
    while outer is not None:
        if outer.f_code.co_filename.startswith(IMPORTING):
            _ask_soon(number)
            return
        outer = outer.f_back
    signal.default_int_handler(number, frame)


def _ask_soon(number: int) -> None:
    timer = threading.Timer(SOON, _ask_again, [number])
    timer.daemon = True
    timer.start()


def _ask_again(number: int) -> None:
    if os.name == "nt":  # where os.kill ends the process without a word
        signal.raise_signal(number)
    else:  # which also wakes a thread that sleeps
        os.kill(os.getpid(), number)
