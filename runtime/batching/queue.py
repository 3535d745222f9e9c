"""A queue of requests, bounded in rows, that is fair to domains and knows priorities.

Start-time fair queueing (Goyal, Vin and Cheng, 1996): every domain has a clock that its own rows
push on, and what has the earliest start goes first. So a domain that floods the queue waits behind
its own rows, and one that asks seldom is next. How many rows a domain may hold follows what is
free (dynamic thresholds, Choudhury and Hahne, 1998), so that no flood shuts the others out.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from prunion.runtime.errors import OverloadError
from prunion.runtime.model import LiveDomain

__all__ = ["FairQueue", "Group", "Job", "Piece", "late"]

SHARE = 4  # a domain may hold this many times the rows that are free
COMING = 4  # times the rows of others that wait now may be served before a row
FORGET = 4096  # clocks kept before those that fell behind are dropped
FIX = "try again later, or with fewer rows"


@dataclass(eq=False)
class Job:
    """One request in the queue, and its answer.

    Attributes:
        images: `[N, ...]` as the graph takes them, checked.
        domains: the domain of each row, as it was when the request was accepted.
        width: columns of the answer; past a row's own classes it holds -inf.
        deadline: on the clock of `time.monotonic`, after which nobody wants the answer.
        priority: 1 is served first.
        notify: called once when `logits` or `error` is there: on `loop`, or without one from any
            thread.
        arrived, started, ended: when it was queued, first run, and answered; nanoseconds of
            `time.perf_counter_ns`.
        batch: rows and domains of the run that it was last part of.
    """

    images: np.ndarray
    domains: tuple[LiveDomain, ...]
    width: int
    deadline: float = float("inf")
    priority: int = 2
    notify: Callable[[], None] = lambda: None
    loop: asyncio.AbstractEventLoop | None = None
    logits: np.ndarray | None = None
    error: Exception | None = None
    arrived: int = 0
    started: int = 0
    ended: int = 0
    infer_ns: int = 0
    batch: tuple[int, int] = (0, 0)
    # In the queue, by where they end: a later one may leave first, and each loses its first rows.
    waiting: dict[int, Piece] = field(default_factory=dict, init=False)
    missing: int = field(default=0, init=False)  # rows without an answer
    closed: bool = field(default=False, init=False)  # answered, failed or given up

    @property
    def rows(self) -> int:
        """N."""
        return len(self.domains)


class Piece(NamedTuple):
    """Some rows of a job: what of it goes into one batch."""

    job: Job
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """How many."""
        return self.stop - self.start

    @property
    def domains(self) -> tuple[LiveDomain, ...]:
        """The domain of each row."""
        return self.job.domains[self.start : self.stop]


Group = Callable[[LiveDomain], object]
_Entry = tuple[int, float, int, Piece]  # priority, start, order


class FairQueue:
    """Not thread-safe: its owner holds a lock.

    Args:
        limit: most rows that wait.
        chunk: most rows of a piece; a longer request waits as several pieces, others between.
        weights: how much of a busy server a domain gets, by name; 1 if it is not named.
    """

    def __init__(self, limit: int, chunk: int, weights: Mapping[str, float] | None = None) -> None:
        self.limit = limit
        self.chunk = chunk
        self.weights = dict(weights or {})
        self.rows = 0
        self.held: Counter[str] = Counter()
        self._heap: list[_Entry] = []
        self._order = itertools.count()
        self._now = 0.0
        self._clocks: dict[str, float] = {}

    def put(self, job: Job) -> None:
        """Queue a job. Raises OverloadError where the queue, or a domain's share, is full."""
        counts = _counts(job.domains)
        free = self.limit - self.rows
        if job.rows > free:
            raise OverloadError(f"the queue holds {self.rows} rows of {self.limit}: {FIX}", "queue")
        for name, count in counts.items():
            # A domain with nothing in the queue is always let in: an idle server takes all rows.
            if self.held[name] and self.held[name] + count > SHARE * free:
                raise OverloadError(
                    f"{name!r} holds {self.held[name]} of the queue's {self.limit} rows: {FIX}",
                    "queue",
                )
        job.missing = job.rows
        self.rows += job.rows
        for name, count in counts.items():
            self.held[name] += count
        first = self._now
        for place in range(0, job.rows, self.chunk):
            piece = Piece(job, place, min(place + self.chunk, job.rows))
            job.waiting[piece.stop] = piece
            first = self._start_of(piece, first)  # rows of a job are taken in their order
            heapq.heappush(self._heap, (job.priority, first, next(self._order), piece))

    def ahead(self, domains: tuple[LiveDomain, ...]) -> int:
        """About how many rows are served before the last row of a request for `domains`.

        Other domains have their turns meanwhile, with rows that are still to come too: in an
        overload the rows that wait now are the least of it.
        """
        counts = _counts(domains)
        name = max(counts, key=lambda name: self.held[name] + counts[name], default="")
        own = self.held[name] + counts.get(name, 0)
        others = len(self.held) + sum(name not in self.held for name in counts) - 1
        waiting = self.rows - self.held[name] + len(domains) - counts.get(name, 0)
        return own + min(own * others, COMING * waiting)

    def take(
        self, most: int, now: float, group: Group | None = None
    ) -> tuple[list[Piece], list[Job]]:
        """At most `most` rows to run together, and the jobs whose deadline is over.

        A piece that does not fit is cut; its rest stays first in the queue. With `group` all rows
        are of the group of the first one; what is of others keeps its place. A piece of several
        groups is in that of None.
        """
        taken: list[Piece] = []
        expired: list[Job] = []
        others: list[_Entry] = []
        while self._heap and most > 0:
            priority, start, order, piece = self._heap[0]
            job = piece.job
            if job.closed:
                heapq.heappop(self._heap)
                continue
            if job.deadline <= now:
                expired.append(job)
                self.drop(job)
                continue
            if group is not None and not taken:
                others = self._set_aside(group, piece)
            self._now = max(self._now, start)
            count = min(piece.rows, most)
            middle = piece.start + count
            if count < piece.rows:
                rest = Piece(job, middle, piece.stop)
                heapq.heapreplace(self._heap, (priority, start, order, rest))
                job.waiting[piece.stop] = rest
            else:
                heapq.heappop(self._heap)
                del job.waiting[piece.stop]
            part = Piece(job, piece.start, middle)
            self._forget_rows(part.domains)
            taken.append(part)
            most -= count
        if others:
            self._heap += others
            heapq.heapify(self._heap)
        if not self.rows:
            self._heap.clear()
            self._clocks.clear()
            self._now = 0.0
        return taken, expired

    def _set_aside(self, group: Group, first: Piece) -> list[_Entry]:
        """Leave only what is of the group of `first` in the heap; returns the rest."""
        own, kept, others = _group(first, group), list[_Entry](), list[_Entry]()
        for entry in self._heap:
            (kept if _group(entry[3], group) == own else others).append(entry)
        heapq.heapify(kept)
        self._heap = kept
        return others

    def drop(self, job: Job) -> None:
        """Take what waits of a job out of the queue: nobody wants it any more."""
        if not job.closed:
            job.closed = True
            for piece in job.waiting.values():
                self._forget_rows(piece.domains)
            job.waiting.clear()
            if len(self._heap) > 64 and len(self._heap) > 2 * self.rows:
                self._heap = [entry for entry in self._heap if not entry[3].job.closed]
                heapq.heapify(self._heap)

    def _start_of(self, piece: Piece, least: float) -> float:
        counts = _counts(piece.domains)
        start = max(least, *(self._clocks.get(name, 0.0) for name in counts))
        for name, count in counts.items():
            self._clocks[name] = start + count / self.weights.get(name, 1.0)
        if len(self._clocks) > FORGET:
            self._clocks = {k: v for k, v in self._clocks.items() if v > self._now}
        return start

    def _forget_rows(self, domains: tuple[LiveDomain, ...]) -> None:
        self.rows -= len(domains)
        for domain in domains:
            self.held[domain.name] -= 1
            if not self.held[domain.name]:
                del self.held[domain.name]


def late() -> OverloadError:
    """What a request gets whose deadline is over."""
    return OverloadError("the request's deadline passed in the queue: try again later", "deadline")


def _counts(domains: tuple[LiveDomain, ...]) -> Mapping[str, int]:
    if len(domains) == 1:  # as most are; a Counter takes as long as the rest of `put`
        return {domains[0].name: 1}
    return Counter(domain.name for domain in domains)


def _group(piece: Piece, group: Group) -> object:
    first, *others = piece.domains
    return group(first) if all(domain is first for domain in others) else None
