"""Timing several things beside each other, so that their ratios survive a noisy machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from prunion.runtime.errors import InputError

__all__ = ["Timing", "summary", "time_blocks", "time_interleaved", "warm_up"]

SETTLE_S = 0.005
WINDOW_MS, WINDOW_CALLS = 10.0, 3
LONG_MS = 100.0  # a window of fewer calls, each of which is long enough to tell
LEAST_WINDOWS = 4  # the first call, what it is held to, and two that are no faster
FASTER = 0.95  # a window below this share of the best before is one of a call still warming up


@dataclass(frozen=True)
class Timing:
    """One call's duration over `runs` calls, in milliseconds."""

    runs: int
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    min_ms: float


def time_interleaved(
    cases: Mapping[str, Callable[[], object]],
    seconds: float = 2.0,
    warmup: int = 3,
    block_ms: float = 60.0,
) -> dict[str, Timing]:
    """Time every case for about `seconds` each, after `warmup` calls each.

    Rounds visit each case once in random order and time a block of about `block_ms`, so that
    other load on the machine falls on all of them alike. Ratios between cases of one call are
    sound; figures of two calls are not to be compared.
    """
    if not cases or seconds <= 0 or warmup < 0:
        raise InputError("give at least one case, seconds above 0 and warmup of 0 or more")
    for call in cases.values():
        for _ in range(warmup):
            call()
    samples: dict[str, list[float]] = {name: [] for name in cases}
    order = np.random.default_rng(0)
    names = list(cases)
    deadline = dict.fromkeys(names, seconds * 1000.0)
    while any(left > 0 for left in deadline.values()):
        for place in order.permutation(len(names)):
            name = names[place]
            if deadline[name] > 0:
                spent = _block(cases[name], samples[name], min(block_ms, deadline[name]))
                deadline[name] -= spent
    return {name: summary(values) for name, values in samples.items()}


def time_blocks(
    cases: Mapping[str, Callable[[], object]], seconds: float, block_ms: float = 60.0
) -> dict[str, list[np.ndarray]]:
    """Every call's milliseconds, in blocks: the k-th blocks of all cases are of one round.

    Rounds as in `time_interleaved`, each visiting every case, until `seconds` for each case are
    spent on the whole; there is one round at least. Nothing is warmed up before.
    """
    blocks: dict[str, list[np.ndarray]] = {name: [] for name in cases}
    order, names = np.random.default_rng(0), list(cases)
    left = seconds * 1000.0 * len(names)
    while left > 0:
        for place in order.permutation(len(names)):
            samples: list[float] = []
            left -= _block(cases[names[place]], samples, block_ms)
            blocks[names[place]].append(np.array(samples))
    return blocks


def warm_up(call: Callable[[], object], most_s: float) -> tuple[int, bool]:
    """Call until it gets no faster; how often that was, and whether it came to rest in `most_s`.

    It rests when two windows in a row, of 10 ms and 3 calls (or 100 ms) at least, are not faster
    than the best before them. One would not do: other load makes a window slow as well. Calls that
    take so long that `most_s` holds no four windows have four all the same.
    """
    calls, windows, rested, best = 0, 0, 0, float("inf")
    end = time.perf_counter() + most_s
    while rested < 2:
        samples: list[float] = []
        while (spent := sum(samples)) < WINDOW_MS or len(samples) < WINDOW_CALLS:
            if spent >= LONG_MS:
                break
            if windows >= LEAST_WINDOWS and time.perf_counter() > end:
                return calls, False
            start = time.perf_counter()
            call()
            samples.append((time.perf_counter() - start) * 1e3)
            calls += 1
        median = float(np.median(samples))
        rested = rested + 1 if median >= FASTER * best else 0
        best, windows = min(best, median), windows + 1
    return calls, True


def _block(call: Callable[[], object], samples: list[float], block_ms: float) -> float:
    # The case before left its threads spinning and the caches full of its own data.
    time.sleep(SETTLE_S)
    call()
    spent = 0.0
    while spent < block_ms:
        start = time.perf_counter()
        call()
        elapsed = (time.perf_counter() - start) * 1e3
        samples.append(elapsed)
        spent += elapsed
    return spent


def summary(samples: Sequence[float] | np.ndarray) -> Timing:
    """Percentiles of single calls' milliseconds."""
    values = np.array(samples)
    p50, p90, p99 = np.percentile(values, [50, 90, 99])
    return Timing(
        len(values), float(values.mean()), float(p50), float(p90), float(p99), float(values.min())
    )
