"""Ctrl-C while a library is imported: it waits until that is done.

An exception that rises out of Python code inside a library's C++ initialisers ends the process by
abort, with a trace of C++ in place of the one line that an interrupt has.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

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


def _interrupt(number: int, frame: FrameType | None) -> None:
    outer = frame
    while outer is not None:
        if outer.f_code.co_filename.startswith(IMPORTING):
            timer = threading.Timer(SOON, _ask_again)
            timer.daemon = True
            timer.start()
            return
        outer = outer.f_back
    signal.default_int_handler(number, frame)


def _ask_again() -> None:
    if os.name == "nt":  # where os.kill ends the process without a word
        signal.raise_signal(signal.SIGINT)
    else:  # which also wakes a thread that sleeps
        os.kill(os.getpid(), signal.SIGINT)
