"""Timing several things beside each other, so that their ratios survive a noisy machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from prunion.runtime.errors import InputError

__all__ = ["Timing", "time_interleaved"]

SETTLE_S = 0.005


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
    seed: int = 0,
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
    order = np.random.default_rng(seed)
    names = list(cases)
    deadline = dict.fromkeys(names, seconds * 1000.0)
    while any(left > 0 for left in deadline.values()):
        for place in order.permutation(len(names)):
            name = names[place]
            if deadline[name] > 0:
                spent = _block(cases[name], samples[name], min(block_ms, deadline[name]))
                deadline[name] -= spent
    return {name: _summary(values) for name, values in samples.items()}


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


def _summary(samples: list[float]) -> Timing:
    values = np.array(samples)
    p50, p90, p99 = np.percentile(values, [50, 90, 99])
    return Timing(
        len(values), float(values.mean()), float(p50), float(p90), float(p99), float(values.min())
    )
