"""How calls are asked for: MLPerf's scenarios, by its LoadGen or a thin loop of the same rules.

Reddi et al., "MLPerf Inference Benchmark", ISCA 2020, §IV: one query after the other (`single`,
p90 of its latency), queries of several samples (`multi`, p99), all at once (`offline`, samples a
second), and queries that arrive as a Poisson process (`server`, the highest rate whose p99 stays
under a bound). Latencies of `server` count from when a query was due, waiting included.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import count
from typing import Any

import numpy as np

from prunion.runtime.errors import InputError, OverloadError
from prunion.runtime.measure.loadgen import (
    FEW,
    LEAST,
    LOADGEN_NAMES,
    PERCENTILE,
    Scenario,
    Stretch,
    by_loadgen,
    load_loadgen,
)

__all__ = ["SCENARIOS", "Scenario", "ScenarioReport", "run_scenario", "scenario_line"]

SCENARIOS: tuple[Scenario, ...] = ("single", "multi", "offline", "server")
FINER_THAN = 0.05  # the search for a rate ends when it is known within this share
BEYOND = 1.25  # the search for a rate starts at what can be answered at all, times this
BOUNDS = 20  # in a stretch: a queue that grows by 5 % of the time is over the bound by then


@dataclass(frozen=True)
class ScenarioReport:
    """One scenario's outcome; milliseconds.

    Attributes:
        driver: `LoadGen`, or `own` for the thin loop.
        samples: images in one query.
        latency_ms: the percentile that counts in this scenario: p90 of `single`, else p99. Infinite
            where so many queries were refused.
        samples_per_second: images answered; of `server`, at the highest rate that held.
        bound_ms: of `server`, what p99 had to stay under.
        valid: whether as many queries were answered as LoadGen's early stopping wants at least (64
            for a p90 and of `offline`, 662 for a p99), and in `server` a rate held for 20 bounds.
    """

    scenario: Scenario
    driver: str
    samples: int
    queries: int
    latency_ms: float
    percentile: int
    samples_per_second: float
    bound_ms: float | None
    valid: bool

    def to_json(self) -> dict[str, Any]:
        """A JSON value; a latency of queries that were refused is null."""
        latency = self.latency_ms if math.isfinite(self.latency_ms) else None
        return asdict(self) | {"latency_ms": latency}


def run_scenario(
    scenario: Scenario,
    call: Callable[[], object],
    samples: int,
    seconds: float,
    *,
    bound_ms: float = 15.0,
    workers: int = 1,
) -> ScenarioReport:
    """Ask `call`, one query of `samples` images, in the scenario's way.

    Args:
        call: warmed up.
        seconds: of each stretch; the search for the rate of `server` takes about ten.
        bound_ms: of `server`, above 0.
        workers: queries that may be on their way at a time, in `server`.

    Raises:
        InputError: a time is not above 0.
    """
    if not (seconds > 0 and bound_ms > 0):
        raise InputError("the duration and the bound of p99 must be above 0")
    loadgen, rate = load_loadgen(), None
    driven = loadgen is not None and scenario in LOADGEN_NAMES
    if scenario == "server":
        found, rate = _highest_rate(loadgen, call, seconds, bound_ms, workers)
    elif driven:
        found = by_loadgen(loadgen, scenario, call, seconds, workers)
    else:  # LoadGen's offline query of thousands of samples, by turns of as many as fit a batch
        found = _one_after_the_other(call, seconds, scenario)
    rate = found.queries / found.seconds if rate is None else rate
    return ScenarioReport(
        scenario=scenario,
        driver="LoadGen" if driven else "own",
        samples=samples,
        queries=found.queries,
        latency_ms=found.latency_ms,
        percentile=PERCENTILE[scenario],
        samples_per_second=rate * samples,
        bound_ms=bound_ms if scenario == "server" else None,
        valid=found.valid,
    )


def scenario_line(report: ScenarioReport) -> str:
    """The outcome in one line for people."""
    held = ""
    if report.bound_ms is not None:
        told = "the most with" if report.samples_per_second else "and no rate keeps"
        held = f", {told} p99 under {report.bound_ms:g} ms"
    latency = f"{report.latency_ms:.3f} ms"
    latency = latency if math.isfinite(report.latency_ms) else "none (refused)"
    few = "" if report.valid else " (too short to be sure: give a longer --duration)"
    return (
        f"{report.scenario}: p{report.percentile} {latency}, "
        f"{report.samples_per_second:.1f} images/s{held}{few}; {report.queries} queries of "
        f"{report.samples}, driven by {report.driver}"
    )


def _one_after_the_other(call: Callable[[], object], seconds: float, scenario: Scenario) -> Stretch:
    latencies, start = [], time.perf_counter()
    while (begin := time.perf_counter()) - start < seconds:
        call()
        latencies.append((time.perf_counter() - begin) * 1e3)
    spent = time.perf_counter() - start
    value = _percentile(latencies, PERCENTILE[scenario])
    return Stretch(len(latencies), value, spent, len(latencies) >= LEAST[scenario])


def _percentile(latencies: Sequence[float] | np.ndarray, percentile: int) -> float:
    """As LoadGen has it: a latency that was measured, the first above the share of the others."""
    return float(np.sort(latencies)[len(latencies) * percentile // 100])


def _without_pause(
    call: Callable[[], object], seconds: float, workers: int
) -> tuple[int, int, float]:
    """Queries that were asked and answered, and the seconds of it, where no worker ever waits."""
    start = time.perf_counter()

    def work() -> list[bool]:
        answered = []
        while time.perf_counter() - start < seconds:
            answered.append(_is_answered(call))
        return answered

    with ThreadPoolExecutor(workers) as pool:
        working = [pool.submit(work) for _ in range(workers)]
    answered = [one for done in working for one in done.result()]
    return len(answered), sum(answered), time.perf_counter() - start


def _is_answered(call: Callable[[], object]) -> bool:
    """False where the server had no room: at a rate, that is a query that misses the bound."""
    try:
        call()
    except OverloadError:
        return False
    return True


def _highest_rate(
    loadgen: Any, call: Callable[[], object], seconds: float, bound_ms: float, workers: int
) -> tuple[Stretch, float]:
    """The stretch at the highest rate in queries a second that held, and that rate, by halving."""
    asked, answered, spent = _without_pause(call, min(seconds, 1.0), workers)
    if not answered:  # slower queries would be refused too, one by one
        return Stretch(asked, math.inf, spent, valid=False), 0.0
    low, high = 0.0, BEYOND * max(1.0, answered / spent)
    best: Stretch | None = None
    while high - low > FINER_THAN * high:
        rate = (low + high) / 2
        if loadgen is not None:
            found = by_loadgen(loadgen, "server", call, seconds, workers, rate, bound_ms)
        else:
            found = poisson_stretch(call, rate, seconds, workers)
        if found.latency_ms <= bound_ms:
            low, best = rate, found
        elif low == 0 and rate * seconds < FEW:
            break  # not even a rate that leaves the machine idle
        else:
            high = rate
    if best is None:
        return Stretch(found.queries, found.latency_ms, seconds, valid=False), 0.0
    return replace(best, valid=best.valid and seconds * 1e3 >= BOUNDS * bound_ms), low


def poisson_stretch(
    call: Callable[[], object], rate: float, seconds: float, workers: int
) -> Stretch:
    """Queries that arrive at `rate` a second, at random and apart from how fast they are answered.

    Each worker takes the next that is due, or waits for it: first come, first served.
    """
    number = max(round(rate * seconds), FEW)
    due = np.cumsum(np.random.default_rng(0).exponential(1 / rate, number))
    latencies, taken, lock = np.zeros(number), count(), threading.Lock()
    start = time.perf_counter()

    def queries() -> Iterator[int]:
        while True:
            with lock:
                place = next(taken)
            if place >= number:
                return
            yield place

    def work() -> None:
        for place in queries():
            wait = start + due[place] - time.perf_counter()
            if wait > 0:
                time.sleep(wait)
            answered = _is_answered(call)
            spent = (time.perf_counter() - start - due[place]) * 1e3
            latencies[place] = spent if answered else np.inf

    with ThreadPoolExecutor(workers) as pool:
        for done in [pool.submit(work) for _ in range(workers)]:
            done.result()
    spent = time.perf_counter() - start
    return Stretch(number, _percentile(latencies, 99), spent, number >= LEAST["server"])
