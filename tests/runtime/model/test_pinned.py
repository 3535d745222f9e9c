"""A server's sessions are made beside its requests, and no request waits for one."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from prunion.runtime.errors import BackendError
from prunion.runtime.model import load
from prunion.runtime.model.pinned import OFTEN, Background
from tests.support.waiting import LONG, until

pytest.importorskip("onnxruntime")


class Domain:
    """What `Background` needs of one."""

    def __init__(self, serial: int) -> None:
        self.serial = serial
        self.name = f"d{serial}"


class Pool:
    """Makes a session as soon as it may."""

    def __init__(self, error: Exception | None = None) -> None:
        self.may = threading.Event()
        self.made: dict[int, Any] = {}
        self.asked: list[int] = []
        self.error = error

    def ready(self, domain: Any) -> Any:
        return self.made.get(domain.serial)

    def make(self, domain: Any) -> None:
        self.asked.append(domain.serial)
        assert self.may.wait(LONG)
        if self.error is not None:
            raise self.error
        self.made[domain.serial] = f"session {domain.serial}"


def test_no_request_waits_for_a_session() -> None:
    pool = Pool()
    background, first, other = Background(pool.ready, pool.make), Domain(0), Domain(1)
    for _ in range(OFTEN - 1):
        assert background.pinned(first) is None  # type: ignore[arg-type]
    time.sleep(0.05)
    assert not pool.asked, "a domain that is asked seldom gets none"
    begun = time.monotonic()
    for _ in range(10 * OFTEN):
        assert background.pinned(first) is None  # type: ignore[arg-type]
        assert not background.can_hold([first, other])  # type: ignore[list-item]
    assert time.monotonic() - begun < LONG / 2, "one is being made all the while"
    pool.may.set()
    until(lambda: background.can_hold([first, other]))  # type: ignore[list-item]
    assert background.pinned(first) == "session 0"  # type: ignore[arg-type, comparison-overlap]
    assert sorted(pool.asked) == [0, 1], "each is made once"
    background.close()


def test_a_domain_among_very_many_gets_no_session() -> None:
    """A few sessions would answer a few requests in a hundred, and take most of the memory."""
    pool = Pool()
    pool.may.set()
    background = Background(pool.ready, pool.make, share=1 / 8)
    many = [Domain(serial) for serial in range(100)]
    for _ in range(5 * OFTEN):
        for domain in many:
            assert background.pinned(domain) is None  # type: ignore[arg-type]
    assert not pool.asked
    for turn in range(20 * OFTEN):  # one of them is asked for as often as all others together
        background.pinned(many[7])  # type: ignore[arg-type]
        background.pinned(many[turn % 100])  # type: ignore[arg-type]
    for _ in range(4000):  # what was before is forgotten
        background.pinned(many[7])  # type: ignore[arg-type]
    until(lambda: pool.made == {7: "session 7"})
    background.close()


def test_closing_waits_for_what_is_being_made() -> None:
    """A process that ends while a library works in another thread is aborted."""
    pool = Pool()
    background = Background(pool.ready, pool.make)
    for serial in range(3):
        background.want(Domain(serial))  # type: ignore[arg-type]
    until(lambda: pool.asked)
    closing = threading.Thread(target=background.close)
    closing.start()
    closing.join(0.05)  # short: it is not to end
    assert closing.is_alive()
    pool.may.set()
    closing.join(LONG)
    assert not closing.is_alive()
    assert pool.asked == [0], "what was not begun is left"
    background.want(Domain(7))  # type: ignore[arg-type]
    assert background.pinned(Domain(7)) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("error", [BackendError("no room"), RuntimeError("a bug")])
def test_what_cannot_be_made_is_not_tried_for_ever(error: Exception) -> None:
    pool, domain = Pool(error), Domain(0)
    pool.may.set()
    background = Background(pool.ready, pool.make)
    until(lambda: background.pinned(domain) or domain in background._failed)  # type: ignore
    for _ in range(5 * OFTEN):
        assert background.pinned(domain) is None  # type: ignore[arg-type]
    time.sleep(0.01)
    assert pool.asked == [0]
    background.close()


def test_answers_are_the_same_before_and_after(
    bundle_path: Path, toy: ModuleType, batch: np.ndarray
) -> None:
    rows = np.array([0, 1, 2, 2, 1, 0])
    expected = toy.reference(toy.make_tables(), batch, rows)
    with load(bundle_path, "cpu", threads=1) as model:
        model.sessions.mixed()
        model.pin_in_background()
        np.testing.assert_allclose(model.logits(batch, rows), expected, rtol=1e-4, atol=1e-5)

        def all_there() -> bool:
            for row in range(3):
                found = model.logits(batch[row : row + 1], [row])
                np.testing.assert_allclose(found, expected[row : row + 1], rtol=1e-4, atol=1e-5)
            return len(model.sessions.resident()) == 3

        until(all_there)
        np.testing.assert_allclose(model.logits(batch, rows), expected, rtol=1e-4, atol=1e-5)


def test_sessions_that_all_fit_are_made_before_they_are_asked_for(bundle_path: Path) -> None:
    with load(bundle_path, "cpu", threads=1) as model:
        model.pin_in_background()
        until(lambda: len(model.sessions.resident()) == 3)
    with load(bundle_path, "cpu", threads=1, memory_limit=1) as model:
        model.pin_in_background()
        time.sleep(0.1)
        assert not model.sessions.resident()
