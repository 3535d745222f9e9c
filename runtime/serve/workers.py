"""Several processes that share the ports: started, told what the first is told, and replaced."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType

from prunion.runtime.errors import ConfigError

__all__ = ["run_workers"]

FORWARDED = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)
)
SOON = 5.0  # seconds: who ends sooner than this was not able to start
logger = logging.getLogger("prunion.serve")


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
