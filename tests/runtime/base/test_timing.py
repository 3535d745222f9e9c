"""Interleaved timing measures what it says."""

from __future__ import annotations

import itertools
import time

import pytest

from prunion.runtime.base import machine_facts, peak_rss_bytes, time_interleaved
from prunion.runtime.errors import InputError


def test_cases_take_turns_and_times_are_right() -> None:
    calls: list[str] = []

    def case(name: str, duration: float) -> object:
        calls.append(name)
        time.sleep(duration)
        return None

    cases = {"slow": lambda: case("slow", 0.006), "fast": lambda: case("fast", 0.002)}
    timings = time_interleaved(cases, seconds=0.1, warmup=1, block_ms=15)
    assert calls[:2] == ["slow", "fast"]
    changes = sum(a != b for a, b in itertools.pairwise(calls))
    assert changes >= 5, "the cases did not alternate"
    slow, fast = timings["slow"], timings["fast"]
    assert 6 <= slow.min_ms <= slow.p50_ms <= slow.p90_ms <= slow.p99_ms
    assert 2 <= fast.min_ms < slow.min_ms
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
