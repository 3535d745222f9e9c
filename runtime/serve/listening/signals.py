"""Signals that a server follows once it can, and holds back until then; what systemd is told."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

__all__ = ["hangup_held_back", "on_signal", "tell_systemd"]


@contextmanager
def hangup_held_back() -> Iterator[None]:
    """A SIGHUP while the bundle loads waits until it can be followed: it would end the process."""
    if not hasattr(signal, "SIGHUP"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
    try:
        yield
    finally:
        # What waits still is of no more use, and would end the process before it says why.
        handler = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        signal.signal(signal.SIGHUP, handler or signal.SIG_DFL)


def on_signal(
    loop: asyncio.AbstractEventLoop, number: signal.Signals, call: Callable[[], None]
) -> None:
    """Have a loop make a call where a signal comes."""
    try:
        loop.add_signal_handler(number, call)
    except NotImplementedError:  # Windows
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(call))


def tell_systemd(state: str) -> None:
    """Where it was that started the server and waits (`Type=notify`)."""
    place = os.environ.get("NOTIFY_SOCKET", "")
    if place:
        place = place.replace("@", "\0", 1) if place.startswith("@") else place
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as found:
            found.sendto(state.encode(), place)
