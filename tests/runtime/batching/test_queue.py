"""The queue: bounded, fair between domains, with priorities; what is cut, given up, or late."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from prunion.runtime.batching.queue import FairQueue, Job
from prunion.runtime.errors import OverloadError


@dataclass(frozen=True, eq=False)
class Domain:
    name: str


DOMAINS = {name: Domain(name) for name in "abcdef"}


def job(names: str, **options: Any) -> Job:
    return Job(np.zeros((len(names), 1)), tuple(DOMAINS[n] for n in names), 2, **options)  # type: ignore[misc]


def served(queue: FairQueue, batch: int = 4, batches: int = 100) -> list[str]:
    """The domains of the rows in the order in which they leave."""
    found = []
    for _ in range(batches):
        pieces, _ = queue.take(batch, now=0.0)
        found += [d.name for piece in pieces for d in piece.domains]
    return found


def test_rows_leave_in_order_and_a_long_request_is_cut() -> None:
    queue = FairQueue(limit=100, chunk=4)
    first, second = job("aaaaaa"), job("aa")
    queue.put(first)
    queue.put(second)
    sizes = [[(p.job, p.start, p.stop) for p in queue.take(4, 0.0)[0]] for _ in range(3)]
    assert sizes == [[(first, 0, 4)], [(first, 4, 6), (second, 0, 2)], []]
    assert queue.rows == 0 and not queue.held


def test_a_flood_of_one_domain_does_not_hold_up_another() -> None:
    queue = FairQueue(limit=1000, chunk=4)
    for _ in range(100):
        queue.put(job("aaaa"))
    queue.put(job("b"))
    assert "b" in served(queue, batches=2), "it came last and is served with the second batch"


def test_busy_domains_share_as_their_weights_say() -> None:
    queue = FairQueue(limit=4000, chunk=4, weights={"b": 3})
    for _ in range(200):
        queue.put(job("a"))
        queue.put(job("b"))
    found = served(queue, batches=20)
    assert found.count("b") == pytest.approx(3 * found.count("a"), abs=4)


def test_a_long_request_leaves_gaps_for_others() -> None:
    queue = FairQueue(limit=1000, chunk=4)
    queue.put(job("a" * 40))
    queue.put(job("b" * 8))
    assert served(queue, batches=4).count("b") >= 4


def test_priorities_come_first() -> None:
    queue = FairQueue(limit=100, chunk=4)
    queue.put(job("aaaa"))
    queue.put(job("b", priority=3))
    queue.put(job("c", priority=1))
    assert served(queue) == ["c", *"aaaa", "b"]


def test_a_full_queue_refuses_and_says_why() -> None:
    queue = FairQueue(limit=10, chunk=4)
    queue.put(job("a" * 8))
    with pytest.raises(OverloadError, match="8 rows of 10") as caught:
        queue.put(job("bbb"))
    assert caught.value.reason == "queue"
    assert queue.rows == 8


def test_a_flood_leaves_room_for_the_others() -> None:
    queue = FairQueue(limit=100, chunk=4)
    with pytest.raises(OverloadError, match="'a' holds"):
        for _ in range(100):
            queue.put(job("aa"))
    assert queue.rows >= 75, "one domain alone may use most of the queue"
    queue.put(job("b" * 10))


def test_what_is_given_up_leaves() -> None:
    queue = FairQueue(limit=100, chunk=4)
    gone, stays = job("a" * 6), job("b")
    queue.put(gone)
    queue.put(stays)
    queue.take(4, 0.0)
    queue.drop(gone)
    queue.drop(gone)
    assert queue.rows <= 1
    assert [p.job for p in queue.take(9, 0.0)[0]] in ([stays], [])
    assert queue.rows == 0 and not queue.held


def test_mixed_requests_are_counted_for_each_domain_and_taken_in_order() -> None:
    queue = FairQueue(limit=1000, chunk=2)
    for _ in range(10):
        queue.put(job("aa"))
    mixed = job("aabb")
    queue.put(mixed)
    taken = []
    while queue.rows:
        taken += [piece.start for piece in queue.take(2, 0.0)[0] if piece.job is mixed]
    assert taken == sorted(taken) and not queue.held


def test_a_late_request_is_not_run() -> None:
    queue = FairQueue(limit=100, chunk=4)
    late, good = job("aa", deadline=1.0), job("b", deadline=3.0)
    queue.put(late)
    queue.put(good)
    pieces, expired = queue.take(4, now=2.0)
    assert expired == [late]
    assert [p.job for p in pieces] == [good]
    assert queue.rows == 0


def test_rows_ahead_are_about_what_is_served_before() -> None:
    queue = FairQueue(limit=1000, chunk=4)
    assert queue.ahead((DOMAINS["a"],)) == 1  # type: ignore[arg-type]
    queue.put(job("a" * 100))
    assert queue.ahead((DOMAINS["a"],)) == 101  # type: ignore[arg-type]
    assert queue.ahead((DOMAINS["b"],)) == 2, "its turn comes at once"  # type: ignore[arg-type]


def own_group(domain: Any) -> str | None:
    """A and b have sessions of their own."""
    return domain.name if domain.name in "ab" else None


def test_rows_of_one_group_leave_together_and_the_rest_keeps_its_place() -> None:
    queue = FairQueue(limit=100, chunk=4)
    for names in ("a", "c", "b", "a", "d", "ab", "b"):
        queue.put(job(names))
    batches = []
    while queue.rows:
        pieces, expired = queue.take(8, 0.0, own_group)
        assert not expired
        batches.append(sorted("".join(d.name for d in piece.domains) for piece in pieces))
    # What asks for several domains at once goes with those that have no session of their own.
    assert batches == [["a", "a"], ["ab", "c", "d"], ["b", "b"]]
    assert not queue.held


def test_what_is_given_up_leaves_though_its_later_rows_went_first() -> None:
    queue = FairQueue(limit=1000, chunk=32)
    queue.put(job("b"))
    long = job("a" * 32 + "b" * 32)
    queue.put(long)
    pieces, _ = queue.take(8, 0.0, own_group)
    assert [(piece.start, piece.stop) for piece in pieces] == [(0, 1), (32, 39)]
    queue.drop(long)
    assert queue.rows == 0 and not queue.held


def test_a_late_request_of_several_groups_leaves_with_all_its_rows() -> None:
    """Rows of other groups are out of sight while those of the first one are taken."""
    queue = FairQueue(limit=1000, chunk=32)
    queue.put(job("a"))
    queue.put(job("a" * 32 + "b" * 32, deadline=1.0))
    pieces, expired = queue.take(8, 2.0, own_group)
    assert len(pieces) == len(expired) == 1
    assert queue.rows == 0 and not queue.held


def test_a_group_is_cut_where_the_batch_is_full_and_a_flood_waits() -> None:
    queue = FairQueue(limit=1000, chunk=4)
    for _ in range(40):
        queue.put(job("a"))
    queue.put(job("b"))
    first = queue.take(4, 0.0, own_group)[0]
    second = queue.take(4, 0.0, own_group)[0]
    assert [d.name for piece in first for d in piece.domains] == ["a"] * 4
    assert [d.name for piece in second for d in piece.domains] == ["b"]
    queue.put(job("b"))  # it came last, and is next
    assert [d.name for p in queue.take(4, 0.0, own_group)[0] for d in p.domains] == ["b"]


def test_weights_hold_for_groups_too() -> None:
    queue = FairQueue(limit=4000, chunk=4, weights={"b": 3})
    for _ in range(400):
        queue.put(job("a"))
        queue.put(job("b"))
    found: list[str] = []
    for _ in range(40):
        found += [d.name for p in queue.take(4, 0.0, own_group)[0] for d in p.domains]
    assert found.count("b") == pytest.approx(3 * found.count("a"), abs=12)


def test_late_rows_of_other_groups_are_given_up_in_their_turn() -> None:
    queue = FairQueue(limit=100, chunk=4)
    queue.put(job("c", deadline=1.0))
    queue.put(job("a"))
    late = job("b", deadline=1.0)
    queue.put(late)
    pieces, expired = queue.take(4, 2.0, own_group)
    assert [d.name for piece in pieces for d in piece.domains] == ["a"] and len(expired) == 1
    assert queue.take(4, 2.0, own_group) == ([], [late])


def test_rows_that_are_still_to_come_are_ahead_too() -> None:
    """In an overload every domain has its turns, however few of its rows wait now."""
    queue = FairQueue(limit=1000, chunk=4)
    queue.put(job("a" * 80))
    for name in "bcdef":
        queue.put(job(name * 30))
    ahead = queue.ahead((DOMAINS["a"],))  # type: ignore[arg-type]
    served = 0
    while queue.held["a"]:
        pieces, _ = queue.take(1, 0.0)
        served += 1
        if pieces[0].domains[0].name != "a":  # as many come as are answered
            queue.put(job(pieces[0].domains[0].name))
    assert ahead == pytest.approx(served, rel=0.1)
