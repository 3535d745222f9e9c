"""Ports, and several processes that share them: started, told what the first is told, replaced."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

from prunion.runtime.errors import ConfigError

__all__ = ["bind_port", "hold_port", "run_workers"]

FORWARDED = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)
)
SOON = 5.0  # seconds: who ends sooner than this was not able to start
logger = logging.getLogger("prunion.serve")


def bind_port(
    host: str, port: int, option: str = "port", *, shared: bool = False, again: bool = True
) -> socket.socket:
    """A socket that has its address and does not listen yet.

    Args:
        shared: let others of this user that are `shared` too have the address.
        again: take it while connections of an earlier server linger there.

    Raises ConfigError.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sends at once (TCP_NODELAY) only where a socket says that it is of TCP; without, every
    # answer of two writes waits 40 ms for the client's delayed acknowledgement.
    found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    if again:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        found.bind((host, port))
    except OSError as exc:
        found.close()
        raise ConfigError(
            f"cannot listen on {host} port {port} ({exc.strerror}): choose another --{option}"
        ) from None
    return found


def hold_port(host: str, port: int, option: str = "port") -> socket.socket:
    """A socket that holds an address for workers to share, and that nobody else has.

    Raises ConfigError.
    """
    # A shared socket joins whoever shares the port already, another server too: only one that does
    # not share is told of them.
    bind_port(host, port, option).close()
    # Without `again` such a socket of another server is told of this one before a worker listens.
    # What lingers of a server with one worker forbids it; nobody is there, as was just seen.
    with suppress(ConfigError):
        return bind_port(host, port, option, shared=True, again=False)
    return bind_port(host, port, option, shared=True)


def run_workers(count: int, work: Callable[[], None]) -> None:
    """Run `work` in `count` processes until they are told to stop.

    Must be called before libraries start threads. A process that dies is replaced. Raises
    ConfigError where none can start.
    """
    started: dict[int, float] = {}
    stopping = False

    def forward(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = stopping or number in (signal.SIGTERM, signal.SIGINT)
        for child in list(started):
            os.kill(child, number)

    for number in FORWARDED:
        signal.signal(number, forward)
    for _ in range(count):
        started[_child(work)] = time.monotonic()
    failed = False
    while started:
        child, status = os.wait()
        begun = started.pop(child, None)
        if begun is None or stopping or failed:
            continue
        if time.monotonic() - begun < SOON:
            failed = True  # it would be started for ever
            for other in started:
                os.kill(other, signal.SIGTERM)
            continue
        code = os.waitstatus_to_exitcode(status)
        logger.error("worker %d ended with %d: starting another", child, code)
        started[_child(work)] = time.monotonic()
    if failed:
        raise ConfigError("a worker did not start: try --workers 1, which says why")


def _child(work: Callable[[], None]) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        for number in FORWARDED:
            signal.signal(number, signal.SIG_DFL)
        work()
        code = 0
    except BaseException as exc:
        logger.error("%s", exc)
    finally:
        sys.stderr.flush()
        os._exit(code)
