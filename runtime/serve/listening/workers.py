"""Several processes that share ports: started, told what the first is told, replaced."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from types import FrameType

from prunion.runtime.errors import ConfigError

__all__ = ["run_workers", "what_lies"]

STOP = (signal.SIGTERM, signal.SIGINT)
FORWARDED = (*STOP, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))
SOON = 5.0  # seconds: who ends sooner than this was not able to start
LATEST = 30.0  # seconds until the next one is tried
TRIES = 3  # of replacements in a row, where no other serves
EVERY = 0.05  # seconds
logger = logging.getLogger("prunion.serve")


def what_lies(bundle: Path) -> tuple[int, ...]:
    """What is another where another bundle was put at a path; empty where there is none."""
    try:
        folder, manifest = bundle.stat(), (bundle / "manifest.json").stat()
    except OSError:
        return ()
    return (
        folder.st_ino,
        manifest.st_ino,
        manifest.st_size,
        manifest.st_mtime_ns,
        manifest.st_ctime_ns,
    )


def run_workers(count: int, work: Callable[[], None], lying: Callable[[], object]) -> None:
    """Run `work` in `count` processes until they are told to stop.

    Must be called before libraries start threads. A process that dies is replaced; where the next
    one ends at once too, later and later, while others go on. A worker begins with SIGHUP held
    back, and lets it through once it can follow.

    Args:
        lying: what lies where workers load from, falsy for nothing. Where it changed, all of them
            are told by SIGHUP along with a replacement: they would answer unlike.

    Raises ConfigError where one of the first ends at once, or none is left that does not.
    """
    _Workers(work, lying).run(count)


class _Workers:
    """The processes that run, by their numbers: when each began, and whether it was there first."""

    def __init__(self, work: Callable[[], None], lying: Callable[[], object]) -> None:
        self.work, self.lying = work, lying
        self.running: dict[int, tuple[float, bool]] = {}
        self.due: list[float] = []  # when replacements are to start
        self.failures = 0  # in a row
        self.stopping = self.failed = False
        self.loaded = lying()
        self.unproved: set[int] = set()  # replacements that may still load

    def run(self, count: int) -> None:
        for number in FORWARDED:
            signal.signal(number, self._forward)
        for _ in range(count):
            self._start(first=True)
        while self.running or self.due:
            for child, status in _ended(self.running):
                self._bury(child, status)
            if self.stopping or self.failed:
                self.due.clear()
            self._prove()
            now = time.monotonic()
            for when in [x for x in self.due if x <= now]:
                self.due.remove(when)
                self._agree(self.lying())
                self._start(first=False)
            time.sleep(EVERY)
        if self.failed:
            raise ConfigError("workers do not start: try --workers 1, which says why")

    def _bury(self, child: int, status: int) -> None:
        begun, first = self.running.pop(child)
        self.unproved.discard(child)
        if self.stopping or self.failed:
            return
        soon = time.monotonic() - begun < SOON
        if soon and first:
            self._fail()
        else:
            code = os.waitstatus_to_exitcode(status)
            self._again(f"worker {child} ended with {code}", soon=soon)

    def _again(self, why: str, *, soon: bool) -> None:
        """Have another one started, later if the last ones ended at once."""
        now = time.monotonic()
        self.failures = self.failures + 1 if soon else 0
        if self.failures > TRIES and not any(now - x >= SOON for x, _ in self.running.values()):
            self._fail()
            return
        pause = min(2.0 ** (self.failures - 1), LATEST) if soon else 0.0
        logger.error("%s: starting another in %g s", why, pause)
        self.due.append(now + pause)

    def _fail(self) -> None:
        """End all: they would be started for ever."""
        self.failed = True
        self._tell(signal.SIGTERM)

    def _prove(self) -> None:
        """Told again once a replacement has loaded: half of a bundle may have lain there before."""
        now = time.monotonic()
        proved = {x for x in self.unproved if now - self.running[x][0] >= SOON}
        if proved:
            self.unproved -= proved
            self.failures = 0
            found = self.lying()
            self._agree(found)
            self.loaded = found or self.loaded

    def _agree(self, found: object) -> None:
        """Tell all workers to serve what lies there, where it is not what they began with."""
        if found and found != self.loaded:
            logger.warning("another bundle may lie there by now: all workers are to serve it")
            self._tell(signal.SIGHUP)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        self.stopping = self.stopping or number in STOP
        self._tell(number)

    def _tell(self, number: int) -> None:
        for child in list(self.running):
            with suppress(ProcessLookupError):
                os.kill(child, number)

    def _start(self, *, first: bool) -> None:
        # Held back until the parent knows its child, and the child no longer acts as the parent.
        signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
        try:
            child = -1 if self.stopping else os.fork()
        except OSError as exc:
            child = -1
            self._again(f"no process can be started ({exc.strerror})", soon=True)
        if child > 0:
            self.running[child] = time.monotonic(), first
            if not first:
                self.unproved.add(child)
        if child:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
        else:
            self._become_worker()

    def _become_worker(self) -> None:
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


def _ended(children: Iterable[int]) -> list[tuple[int, int]]:
    """Those that have, each with its status."""
    found = (os.waitpid(child, os.WNOHANG) for child in list(children))
    return [(child, status) for child, status in found if child]
