"""The batcher: right answers from shared batches, and what it does with the rest."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from prunion.runtime.batching import Batcher, BatchOptions, Job
from prunion.runtime.batching.policy import delay_of
from prunion.runtime.errors import InputError, OverloadError
from prunion.runtime.model import Model, Plan, load
from tests.support.waiting import LONG, until_async

pytest.importorskip("onnxruntime")


@pytest.fixture
def model(bundle_path: Path) -> Iterator[Model]:
    with load(bundle_path, backend="cpu", threads=1) as model:
        yield model


@pytest.fixture
def batcher(model: Model) -> Iterator[Batcher]:
    batcher = Batcher(model, BatchOptions(max_batch=4, delay=0.0, queue_rows=64))
    yield batcher
    batcher.close()


class Held:
    """A model whose first batch waits until it is let go."""

    def __init__(self, model: Model) -> None:
        self.model, self.go, self.runs = model, threading.Event(), []  # type: ignore[var-annotated]

    def answer(self, array: np.ndarray, domains: Any) -> np.ndarray:
        self.go.wait(LONG)
        self.runs.append(len(domains))
        return self.model.answer(array, domains)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


def job(model: Model, images: np.ndarray, rows: list[int], **options: Any) -> Job:
    domains = model.snapshot.domains
    return Job(images, tuple(domains[row] for row in rows), model.max_classes, **options)


def test_requests_share_batches_and_get_their_own_answers(
    model: Model, batch: np.ndarray, toy: ModuleType
) -> None:
    held = Held(model)
    batcher = Batcher(held, BatchOptions(max_batch=4, delay=0.0))  # type: ignore[arg-type]
    requests = [
        ([0], [0]),
        ([1, 2, 3], [2, 1, 0]),
        (list(range(6)), [0, 1, 2, 2, 1, 0]),
        ([5], [1]),
    ]

    async def all_of_them() -> list[np.ndarray]:
        tasks = [asyncio.create_task(batcher.answer(job(model, batch[p], r))) for p, r in requests]
        await asyncio.sleep(0.05)
        held.go.set()
        return await asyncio.gather(*tasks)

    answers = asyncio.run(all_of_them())
    batcher.close()
    for (places, rows), answer in zip(requests, answers, strict=True):
        expected = toy.reference(toy.make_tables(), batch[places], np.array(rows))
        np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-5)
    assert sum(held.runs) == 11 and max(held.runs) == 4 and len(held.runs) <= 4
    assert batcher.statistics.total.inference_count == 11
    assert batcher.statistics.total.execution_count == len(held.runs)


def test_a_bad_request_costs_its_neighbours_nothing(model: Model, batch: np.ndarray) -> None:
    held = Held(model)
    batcher = Batcher(held, BatchOptions(max_batch=8, delay=0.0))  # type: ignore[arg-type]
    huge = np.full_like(batch[:1], 1e38)

    async def all_of_them() -> list[Any]:
        jobs = [
            job(model, x, [0]) for x in (batch[:1], huge, batch[1:2], np.full_like(huge, np.nan))
        ]
        tasks = [asyncio.create_task(batcher.answer(x)) for x in jobs]
        await asyncio.sleep(0.05)
        held.go.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    good, bad, other, nan = asyncio.run(all_of_them())
    batcher.close()
    assert isinstance(bad, InputError) and isinstance(nan, InputError)
    np.testing.assert_allclose(good, model.logits(batch[:1], [0]), rtol=1e-4)
    np.testing.assert_allclose(other, model.logits(batch[1:2], [0]), rtol=1e-4)


def test_late_and_cancelled_requests_leave_the_queue(model: Model, batch: np.ndarray) -> None:
    held = Held(model)
    batcher = Batcher(held, BatchOptions(max_batch=1, delay=0.0))  # type: ignore[arg-type]

    async def scene() -> None:
        first = asyncio.create_task(batcher.answer(job(model, batch[:1], [0])))
        await until_async(lambda: batcher._running == 1)
        late = job(model, batch[:1], [1], deadline=time.monotonic() + 0.05)
        with pytest.raises(OverloadError, match="deadline"):
            await batcher.answer(late)
        await until_async(lambda: batcher.rows == 1)
        left = asyncio.create_task(batcher.answer(job(model, batch[:3], [1, 1, 1])))
        await until_async(lambda: batcher.rows == 4)
        left.cancel()
        await until_async(lambda: batcher.rows == 1)
        held.go.set()
        await first

    asyncio.run(scene())
    batcher.close()
    assert held.runs == [1]


def test_what_cannot_be_in_time_is_refused_at_once(model: Model, batch: np.ndarray) -> None:
    held = Held(model)
    batcher = Batcher(held, BatchOptions(max_batch=1, delay=0.0))  # type: ignore[arg-type]
    batcher._spent, batcher._answered = 10.0, 1.0  # as if every image took ten seconds
    soon = {"deadline": time.monotonic() + 9}
    tried = job(model, batch[:1], [0], **soon)
    batcher.put(tried)  # the server is idle: it tries
    with pytest.raises(OverloadError, match=r"[23]0\.0 s") as caught:
        batcher.put(job(model, batch[:2], [0, 0], **soon))
    assert caught.value.reason == "deadline" and caught.value.retry_after > 19
    held.go.set()
    batcher.close()
    assert tried.logits is not None


def test_closing_answers_what_was_taken_and_refuses_the_rest(
    batcher: Batcher, batch: np.ndarray
) -> None:
    jobs = [job(batcher.model, batch[:1], [0]) for _ in range(20)]
    for x in jobs:
        batcher.put(x)
    batcher.close()
    assert all(x.logits is not None and x.error is None for x in jobs)
    with pytest.raises(OverloadError) as caught:
        batcher.put(job(batcher.model, batch[:1], [0]))
    assert caught.value.reason == "draining"


def test_the_server_waits_only_where_batches_are_faster() -> None:
    same = {1: 1.0, 2: 2.0, 8: 7.9}
    faster = {1: 1.0, 2: 1.5, 8: 4.0}
    assert delay_of(Plan(same, same)) == 0
    assert delay_of(Plan(faster, faster)) > 0
    assert delay_of(Plan(reason="not measured")) > 0
    # A mixed batch that is no slower than its images one by one brings nothing either.
    assert delay_of(Plan({1: 2.0, 2: 3.0, 8: 8.0}, same)) == 0


def test_it_waits_no_longer_than_a_run_less_saves() -> None:
    some = {1: 1.0, 2: 1.5, 8: 4.5}  # half a millisecond a run, and half for each image
    assert delay_of(Plan(some, some)) == pytest.approx(0.0005)
    gpu = {1: 5.0, 2: 5.0, 8: 5.5}
    assert delay_of(Plan(gpu, gpu)) == pytest.approx(0.002)


def test_a_single_client_that_is_quick_is_not_waited_for(model: Model, batch: np.ndarray) -> None:
    """Its next request may be queued before the batcher has come back to look."""
    held = Held(model)
    batcher = Batcher(held, BatchOptions(max_batch=4, delay=LONG))  # type: ignore[arg-type]

    async def ask() -> float:
        first = asyncio.create_task(batcher.answer(job(model, batch[:1], [0])))
        await until_async(lambda: batcher._running == 1)
        second = asyncio.create_task(batcher.answer(job(model, batch[1:2], [0])))
        await until_async(lambda: batcher.rows == 2)
        begun = time.monotonic()
        held.go.set()
        await asyncio.gather(first, second)
        return time.monotonic() - begun

    assert asyncio.run(ask()) < LONG / 2
    batcher.close()


class Meeting:
    """A model whose batches wait until two of them run beside each other."""

    def __init__(self, model: Model) -> None:
        self.model, self.met = model, threading.Barrier(2, timeout=LONG)
        self.domains: list[set[str]] = []

    def answer(self, array: np.ndarray, domains: Any) -> np.ndarray:
        self.domains.append({domain.name for domain in domains})
        self.met.wait()
        return self.model.answer(array, domains)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


def test_batches_run_beside_each_other(model: Model, batch: np.ndarray, toy: ModuleType) -> None:
    """Also the pieces of one request, which is answered once, when all of them are."""
    options = BatchOptions(max_batch=2, delay=0.0, at_once=2)
    batcher = Batcher(Meeting(model), options)  # type: ignore[arg-type]
    told = []
    one = job(model, batch[:4], [0, 1, 2, 0], notify=lambda: told.append(one))
    batcher.put(one)
    two = job(model, batch[4:6], [1, 2])
    batcher.put(two)
    three = job(model, batch[:1], [2])
    batcher.put(three)
    batcher.close()
    assert told == [one]
    expected = toy.reference(toy.make_tables(), batch[:4], np.array([0, 1, 2, 0]))
    np.testing.assert_allclose(one.logits, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(two.logits, model.logits(batch[4:6], [1, 2]), rtol=1e-4)
    assert len(batcher._threads) == 2


def test_no_more_threads_than_batches_at_once(batcher: Batcher, batch: np.ndarray) -> None:
    batcher.at_once = 3
    jobs = [job(batcher.model, batch[:1], [0]) for _ in range(50)]
    for x in jobs:
        batcher.put(x)
    batcher.close()
    assert all(x.logits is not None for x in jobs) and 1 <= len(batcher._threads) <= 3
    assert batcher.rows == 0 and batcher.statistics.total.inference_count == 50


def test_where_batches_bring_little_each_domain_runs_alone(
    model: Model, batch: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = {1: 1.0, 2: 2.0, 8: 7.9}
    monkeypatch.setattr(model, "tune", lambda: Plan(times, times))
    held = Held(model)
    batcher = Batcher(held, BatchOptions(max_batch=32))  # type: ignore[arg-type]
    batcher.tune()
    assert batcher.grouped and batcher.delay == 0
    batcher.at_once = 1
    model.logits(batch[:1], [0])  # two of three domains get their sessions
    model.logits(batch[:1], [1])
    jobs = [job(model, batch[n % 6 : n % 6 + 1], [n % 3]) for n in range(30)]
    for x in jobs:
        batcher.put(x)
    held.go.set()
    batcher.close()
    assert max(held.runs) == 8 and sum(held.runs) == 30
    runs = list(batcher.statistics.recent)
    assert all(len(run.domains) == 1 for run in runs)
    for x in jobs:
        expected = model.logits(x.images, [x.domains[0].name])
        np.testing.assert_allclose(x.logits, expected[:, : x.width], rtol=1e-4, atol=1e-5)


def test_who_waits_for_a_fuller_batch_keeps_nobody_from_closing(
    model: Model, batch: np.ndarray
) -> None:
    batcher = Batcher(model, BatchOptions(max_batch=9, delay=LONG, at_once=3))
    batcher._together = 2  # as if there were company
    jobs = [job(model, batch[:1], [0]) for _ in range(2)]
    for x in jobs:
        batcher.put(x)
    time.sleep(0.1)
    begun = time.monotonic()
    batcher.close()
    assert time.monotonic() - begun < LONG / 2
    assert all(x.logits is not None for x in jobs)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has priorities of threads")
def test_the_network_gives_way_to_the_event_loop(model: Model, batch: np.ndarray) -> None:
    found: list[int] = []

    class Asked(Held):
        def answer(self, array: np.ndarray, domains: Any) -> np.ndarray:
            found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
            return self.model.answer(array, domains)

    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    batcher = Batcher(Asked(model), BatchOptions(delay=0.0))  # type: ignore[arg-type]
    batcher.put(job(model, batch[:1], [0]))
    batcher.close()
    assert found[0] > before or before == 19
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before
