"""From queued requests to answers: threads that run the model on what the queue gives them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np

from prunion.runtime.batching.policy import (
    BatchOptions,
    delay_of,
    group_of,
    pays,
    runs_at_once,
    step_back,
)
from prunion.runtime.batching.queue import FairQueue, Job, Piece, late
from prunion.runtime.batching.statistics import Statistics
from prunion.runtime.errors import InputError, OverloadError
from prunion.runtime.model import Model, Trials

__all__ = ["Batcher"]

FOREVER = 1e6  # seconds that no client waits
MARGIN = 1.25  # who is let in must be answered: a wait is known about so well
DECAY = 0.9  # what a batch before counts against the newest, in the time of a row
ENOUGH = 8  # rows of a batch where batches bring little: more would only keep others waiting


class Batcher:
    """Thread-safe. Whatever is queued while the model is busy becomes the next batch."""

    def __init__(
        self,
        model: Model,
        options: BatchOptions | None = None,
        statistics: Statistics | None = None,
    ) -> None:
        self.model = model
        self.options = options = options or BatchOptions()
        self.statistics = statistics or Statistics()
        self.delay = options.delay or 0.0
        self.at_once = options.at_once or 1
        self.grouped = False  # whether rows run by domain, where domains have their own sessions
        self._most, self._sharers = options.max_batch, 1  # rows of a batch; takers of what waits
        self._spent, self._answered = 0.0, 1e-9
        self._queue = FairQueue(options.queue_rows, options.max_batch, options.weights)
        self._lock = threading.Lock()
        self._filled = threading.Condition(self._lock)  # of who waits for a fuller batch
        self._threads: list[threading.Thread] = []
        self._idle: list[threading.Condition] = []  # of threads with nothing to do
        self._closing = self._gathering = False
        self._running = self._together = 0  # rows that run, and pieces of the last batch

    @property
    def rows(self) -> int:
        """Rows that wait or run."""
        return self._queue.rows + self._running

    @property
    def row_seconds(self) -> float:
        """What an image took lately, in the batches that it ran in."""
        return self._spent / self._answered / self.at_once

    def tune(self) -> None:
        """Measure, or remember, what batches bring on this machine, and run them accordingly."""
        plan = self.model.tune()
        if plan.mixed and plan.single:
            self.model.trials = Trials()
        told = self.options.delay
        self.delay = delay_of(plan) if told is None else told
        self.at_once = self.options.at_once or runs_at_once(self.model)
        little = not pays(plan) and not told
        self.grouped = self.model.sessions.apart or little
        if little:
            self._most, self._sharers = min(ENOUGH, self.options.max_batch), self.at_once

    async def answer(self, job: Job) -> np.ndarray:
        """`[N, width]` logits of a job.

        Raises OverloadError where there is no room, or no time; InputError where the network's
        answer is not finite. A caller that is cancelled takes its rows with it.
        """
        job.loop = loop = asyncio.get_running_loop()
        future: asyncio.Future[bool] = loop.create_future()

        def wake(answered: bool = True) -> None:
            if not future.done():
                future.set_result(answered)

        job.notify = wake
        self.put(job)
        left = min(job.deadline - time.monotonic(), FOREVER)
        timer = loop.call_later(left, wake, False)
        try:
            if not await future:
                self.cancel(job)
                raise late()
        except asyncio.CancelledError:
            self.cancel(job)
            raise
        finally:
            timer.cancel()
        if job.error is not None:
            raise job.error
        assert job.logits is not None
        return job.logits

    def put(self, job: Job) -> None:
        """Queue a job. Raises OverloadError."""
        job.arrived = time.perf_counter_ns()
        with self._lock:
            if self._closing:
                raise OverloadError("the server is stopping: ask another", "draining")
            wait = (self._queue.ahead(job.domains) + self._running) * self.row_seconds
            # An idle server tries, whatever it took before: only trying tells how fast it is now.
            if self.rows and time.monotonic() + MARGIN * wait > job.deadline:
                raise OverloadError(
                    f"the queue would take about {wait:.1f} s, longer than the request's deadline: "
                    "try again later",
                    "deadline",
                    wait,
                )
            self._queue.put(job)
            if self._gathering:
                self._filled.notify()
            else:
                self._wake()

    def cancel(self, job: Job) -> None:
        """Give a job up: what waits of it leaves the queue."""
        with self._lock:
            self._queue.drop(job)

    def close(self) -> None:
        """Take no more, answer what was taken, and return when that is done."""
        with self._lock:
            self._closing = True
            self._wake_all()
            self._filled.notify_all()
        for thread in self._threads:
            thread.join()

    def _wake(self) -> None:
        """Have a thread that does nothing look at the queue, or one more."""
        if self._idle:  # the one that worked last: its memory is in the processor's caches
            self._idle.pop().notify()
        elif len(self._threads) < self.at_once:
            thread = threading.Thread(target=self._work, name="batcher", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _wake_all(self) -> None:
        while self._idle:
            self._wake()

    def _work(self) -> None:
        step_back()
        done, own = 0, threading.Condition(self._lock)
        while pieces := self._next(done, own):
            self._run(pieces)
            done = sum(piece.rows for piece in pieces)

    def _next(self, done: int, own: threading.Condition) -> list[Piece]:
        """The next batch after one of `done` rows; empty when the batcher is closed and its queue
        is empty."""
        with self._lock:
            self._running -= done
            # A single client, which waits for its answer before it asks again, is not waited for;
            # its next request may be here already.
            company = self._together > 1 or self._queue.rows > 1
            while True:
                while (not self._queue.rows and not self._closing) or self._gathering:
                    self._idle.append(own)
                    own.wait()
                if self.delay and company and not self._closing:
                    self._gather(time.monotonic() + self.delay)
                group = group_of(self.model) if self.grouped else None
                most = min(self._most, -(-self._queue.rows // self._sharers))
                pieces, expired = self._queue.take(most, time.monotonic(), group)
                rows = sum(piece.rows for piece in pieces)
                self._running += rows
                self._together = len(pieces)
                for job in expired:
                    job.error = late()
                _tell(expired)
                if self._queue.rows:  # what is left is for another
                    self._wake()
                if pieces or (self._closing and not self._queue.rows):
                    return pieces

    def _gather(self, until: float) -> None:
        """Wait for a full batch, but not past `until`."""
        self._gathering = True
        while self._queue.rows < self._most and not self._closing:
            left = until - time.monotonic()
            if left <= 0 or not self._filled.wait(left):
                break
        self._gathering = False
        if self._closing:  # those who waited for this were told too early
            self._wake_all()

    def _run(self, pieces: Sequence[Piece]) -> None:
        begun, names = time.perf_counter_ns(), [d.name for p in pieces for d in p.domains]
        for piece in pieces:
            piece.job.started = piece.job.started or begun
        try:
            self._answer(pieces)
        except Exception as exc:
            # What is wrong with one request must not reach those beside it in the batch.
            if len(pieces) > 1:
                for piece in pieces:
                    self._run([piece])
                return
            self._fail(pieces[0].job, exc)
            names = []  # what failed is no inference
        spent = time.perf_counter_ns() - begun
        rows = sum(piece.rows for piece in pieces)
        domains = self.statistics.record_batch(names, spent) if names else 0
        with self._lock:  # pieces of one job may run beside each other
            self._spent = DECAY * self._spent + spent / 1e9
            self._answered = DECAY * self._answered + rows
            for job in {id(piece.job): piece.job for piece in pieces}.values():
                job.batch = rows, domains
                job.infer_ns += spent  # once, though two pieces of it may be in one batch
            closed = [piece.job for piece in pieces if _closes(piece)]
        _tell(closed)

    def _answer(self, pieces: Sequence[Piece]) -> None:
        parts = [piece.job.images[piece.start : piece.stop] for piece in pieces]
        domains = [domain for piece in pieces for domain in piece.domains]
        images = parts[0] if len(parts) == 1 else np.concatenate(parts)
        logits = self.model.answer(np.ascontiguousarray(images), domains)
        place = 0
        for piece in pieces:
            job, own = piece.job, logits[place : place + piece.rows]
            place += piece.rows
            if not _finite(own, piece):
                self._fail(
                    job, InputError("the network's answer is not finite: check the image's values")
                )
                continue
            width = min(job.width, own.shape[1])
            self._room(job)[piece.start : piece.stop, :width] = own[:, :width]

    def _room(self, job: Job) -> np.ndarray:
        """Where a job's logits go."""
        with self._lock:
            if job.logits is None:
                job.logits = np.full((job.rows, job.width), -np.inf, np.float32)
            return job.logits

    def _fail(self, job: Job, error: Exception) -> None:
        with self._lock:
            job.error = job.error or error
            job.missing -= sum(waiting.rows for waiting in job.waiting.values())
            self._queue.drop(job)


def _closes(piece: Piece) -> bool:
    """Count a piece as answered; whether its job has all of its answer now."""
    job = piece.job
    job.missing -= piece.rows
    if job.missing > 0:
        return False
    job.closed = True
    job.ended = time.perf_counter_ns()
    return True


def _tell(jobs: Sequence[Job]) -> None:
    """Tell who waits, once for each event loop: a busy one is slow to give back Python's lock."""
    for loop in {job.loop for job in jobs}:
        calls = [job.notify for job in jobs if job.loop is loop]
        if loop is None:
            _call_all(calls)
        else:
            with suppress(RuntimeError):  # the loop has ended, and nobody waits
                loop.call_soon_threadsafe(_call_all, calls)


def _call_all(calls: Sequence[Callable[[], None]]) -> None:
    for call in calls:
        call()


def _finite(logits: np.ndarray, piece: Piece) -> bool:
    """Whether every row is finite in its own domain's classes."""
    most = min(len(domain.pack.classes) for domain in piece.domains)
    if not np.isfinite(logits[:, :most]).all():
        return False
    return all(
        np.isfinite(row[: len(domain.pack.classes)]).all()
        for row, domain in zip(logits, piece.domains, strict=True)
        if len(domain.pack.classes) > most
    )
