"""Ports, and several processes that share them: started, told what the first is told, replaced."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from prunion.runtime.errors import ConfigError

__all__ = ["bind_port", "hangup_held_back", "hold_port", "run_workers", "what_lies"]

STOP = (signal.SIGTERM, signal.SIGINT)
FORWARDED = (*STOP, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))
SOON = 5.0  # seconds: who ends sooner than this was not able to start
LATEST = 30.0  # seconds until the next one is tried
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
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def what_lies(bundle: Path) -> tuple[int, ...]:
    """What is another where another bundle was put at a path; empty where there is none."""
    try:
        folder, manifest = bundle.stat(), (bundle / "manifest.json").stat()
    except OSError:
        return ()
    return folder.st_dev, folder.st_ino, manifest.st_ino, manifest.st_mtime_ns


def run_workers(count: int, work: Callable[[], None], lying: Callable[[], object]) -> None:
    """Run `work` in `count` processes until they are told to stop.

    Must be called before libraries start threads. A process that dies is replaced; where another
    ends at once, later and later, while the others go on. A worker begins with SIGHUP held back,
    and lets it through once it can follow.

    Args:
        lying: what lies where workers load from. Where it changed since they loaded, all of them
            are told by SIGHUP along with a replacement: they would answer unlike.

    Raises ConfigError where none can start, or none is left.
    """
    _Workers(work, lying).run(count)


class _Workers:
    """The processes that run, by their numbers: when each began, and whether it was there first."""

    def __init__(self, work: Callable[[], None], lying: Callable[[], object]) -> None:
        self.work, self.lying = work, lying
        self.running: dict[int, tuple[float, bool]] = {}
        self.stopping = False
        self.loaded = lying()

    def run(self, count: int) -> None:
        for number in FORWARDED:
            signal.signal(number, self._forward)
        for _ in range(count):
            self._start(first=True)
        failed, pause = False, 0.0
        while self.running:
            child, status = os.wait()
            begun, first = self.running.pop(child, (0.0, False))
            if not begun or self.stopping or failed:
                continue
            soon = time.monotonic() - begun < SOON
            if soon and (first or not self.running):
                failed = True  # it would be started for ever
                self._tell(signal.SIGTERM)
                continue
            pause = min(max(2 * pause, 1.0), LATEST) if soon else 0.0
            code = os.waitstatus_to_exitcode(status)
            logger.error("worker %d ended with %d: starting another in %g s", child, code, pause)
            if self._waited(pause):
                self._replace()
        if failed:
            raise ConfigError("a worker did not start: try --workers 1, which says why")

    def _forward(self, number: int, frame: FrameType | None) -> None:
        if number in STOP:
            self.stopping = True
        else:
            self.loaded = self.lying()
        self._tell(number)

    def _tell(self, number: int) -> None:
        for child in list(self.running):
            os.kill(child, number)

    def _waited(self, seconds: float) -> bool:
        """False where it is to stop meanwhile."""
        until = time.monotonic() + seconds
        while not self.stopping and time.monotonic() < until:
            time.sleep(0.05)
        return not self.stopping

    def _replace(self) -> None:
        found = self.lying()
        if found != self.loaded:
            self.loaded = found
            logger.warning("another bundle lies there by now: all workers are to serve it")
            self._tell(signal.SIGHUP)
        self._start(first=False)

    def _start(self, *, first: bool) -> None:
        # Held back until the parent knows its child, and the child no longer acts as the parent.
        signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
        child = os.fork()
        if child:
            self.running[child] = time.monotonic(), first
            signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
            return
        code = 1
        try:
            for number in FORWARDED:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP)
            self.work()
            code = 0
        except BaseException as exc:
            logger.error("%s", exc)
        finally:
            sys.stderr.flush()
            os._exit(code)
