"""Interleaved timing measures what it says."""

from __future__ import annotations

import itertools
import time

import pytest

from prunion.runtime.base import (
    machine_facts,
    peak_rss_bytes,
    time_blocks,
    time_interleaved,
    warm_up,
)
from prunion.runtime.errors import InputError
from tests.support.waiting import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Measured times are those of what sleeps, whatever else the machine does."""
    clock = Clock()
    monkeypatch.setattr("prunion.runtime.base.timing.time", clock)
    return clock


def test_the_clock_is_the_machines() -> None:
    timing = time_interleaved({"sleep": lambda: time.sleep(0.002)}, seconds=0.01)["sleep"]
    assert timing.min_ms >= 2


def test_cases_take_turns_and_times_are_right(clock: Clock) -> None:
    calls: list[str] = []

    def case(name: str, duration: float) -> object:
        calls.append(name)
        clock.sleep(duration)
        return None

    cases = {"slow": lambda: case("slow", 0.006), "fast": lambda: case("fast", 0.002)}
    timings = time_interleaved(cases, seconds=0.1, warmup=1, block_ms=15)
    assert calls[:2] == ["slow", "fast"]
    changes = sum(a != b for a, b in itertools.pairwise(calls))
    assert changes >= 5, "the cases did not alternate"
    slow, fast = timings["slow"], timings["fast"]
    assert slow.min_ms == pytest.approx(6) == slow.p50_ms == slow.p90_ms == slow.p99_ms
    assert fast.min_ms == pytest.approx(2)
    assert slow.runs >= 3
    assert fast.runs > slow.runs


def test_nothing_to_time_is_refused() -> None:
    with pytest.raises(InputError):
        time_interleaved({})
    with pytest.raises(InputError):
        time_interleaved({"x": lambda: None}, seconds=0)


def test_machine_facts() -> None:
    facts = machine_facts(2)
    assert facts["cores"] >= 1
    assert facts["threads"] == 2
    assert facts["numpy"]
    assert peak_rss_bytes() > 1 << 20


def test_blocks_of_one_round_belong_together(clock: Clock) -> None:
    calls: list[str] = []
    cases = {
        "slow": lambda: calls.append("slow") or clock.sleep(0.004),
        "fast": lambda: clock.sleep(1e-4),
    }
    blocks = time_blocks(cases, seconds=0.3, block_ms=2)
    assert len(blocks["slow"]) == len(blocks["fast"]) >= 4
    assert len(calls) == len(blocks["slow"]) * 2, "one call of each block does not count"
    assert all(block.min() > 3.999 for block in blocks["slow"])
    assert max(map(len, blocks["fast"])) > 10


def test_warming_up_ends_when_calls_get_no_faster(clock: Clock) -> None:
    durations = itertools.chain((0.02, 0.012, 0.008, 0.008, 0.008, 0.004), itertools.repeat(0.002))
    calls, steady = warm_up(lambda: clock.sleep(next(durations)), most_s=5)
    assert steady
    assert calls >= 9, "two windows of the fastest are needed"
    forever = itertools.count()
    assert warm_up(lambda: clock.sleep(0.1 * 0.8 ** next(forever)), most_s=0.2)[1] is False


@pytest.mark.parametrize("seconds", [0.05, 1.5, 30.0])
def test_warming_up_ends_for_slow_calls_too(clock: Clock, seconds: float) -> None:
    """A network of 1.5 s a call was always said to be getting faster still."""
    durations = itertools.chain([1.2 * seconds], itertools.repeat(seconds))
    calls, steady = warm_up(lambda: clock.sleep(next(durations)), most_s=2)
    assert steady
    assert calls <= 12
