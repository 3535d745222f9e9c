"""How requests are put together: what the server was told, and what its plan says of this machine.

Where batches bring little, rows that a session of their own domain answers run by domain: an answer
leaves as soon as its own rows are done, and no row is answered by a slower, shared session.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from prunion.runtime.base import usable_cores
from prunion.runtime.batching.queue import Group
from prunion.runtime.model import Model, Plan

__all__ = ["BatchOptions", "delay_of", "group_of", "pays", "runs_at_once", "step_back"]

GAIN = 1.2  # a batch of 8 must answer this many times the images of batch 1 to be waited for
DELAY = 0.002
NICE = 3  # below the rest of the server


@dataclass(frozen=True)
class BatchOptions:
    """How requests are put together.

    Attributes:
        max_batch: most rows that run together.
        delay: seconds that a row may wait for others; None waits only where batches are faster
            on this machine, as the plan measured it.
        queue_rows: most rows that wait.
        weights: how much of a busy server a domain gets, by name; 1 if it is not named.
        at_once: batches that run beside each other; None for one on each of the processors that
            a session's threads leave.
    """

    max_batch: int = 32
    delay: float | None = None
    queue_rows: int = 1024
    weights: Mapping[str, float] = field(default_factory=dict)
    at_once: int | None = None


def pays(plan: Plan) -> bool:
    """Whether a batch of 8 gains a fifth over its images one by one, or it is not known."""
    kinds = _kinds(plan)
    return not kinds or 8 * _best(plan, 1) >= GAIN * _best(plan, 8)


def delay_of(plan: Plan) -> float:
    """Seconds worth waiting for a fuller batch: none where a batch of 8 gains less than a fifth.

    One run less saves what a run costs beside its rows; waiting longer than that would lose.
    """
    if not _kinds(plan):
        return DELAY
    if not pays(plan):
        return 0.0
    return min(DELAY, (8 * _best(plan, 1) - _best(plan, 8)) / 7 / 1000)


def group_of(model: Model) -> Group:
    """What rows of a batch must have in common: a session of their own, or that they have none."""
    sessions = model.sessions
    if sessions.apart:
        return lambda domain: domain.serial
    own = sessions.resident()
    return lambda domain: domain.serial if domain.serial in own else None


def runs_at_once(model: Model) -> int:
    """Batches that may run beside each other: a GPU has one queue, a processor's cores are many."""
    threads = model.sessions.options.threads
    if threads is None or model.sessions.chosen().backend != "cpu":
        return 1
    return max(1, usable_cores() // threads)


def step_back() -> None:
    """Have this thread give way to the event loop where processors are short.

    The loop needs little, and at once: it tells a client what is refused. Only Linux has a
    priority for each thread.
    """
    if sys.platform == "linux":
        with suppress(OSError):
            # From the main thread's: a thread begins with that of the one that started it.
            usual = os.getpriority(os.PRIO_PROCESS, os.getpid())
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), usual + NICE)


def _kinds(plan: Plan) -> list[Mapping[int, float]]:
    return [times for times in (plan.mixed, plan.single) if times]


def _best(plan: Plan, rows: int) -> float:
    return min(times[rows] for times in _kinds(plan))
