"""How calls are asked for: MLPerf's scenarios, by its LoadGen or a thin loop of the same rules.

Reddi et al., "MLPerf Inference Benchmark", ISCA 2020, §IV: one query after the other (`single`,
p90 of its latency), queries of several samples (`multi`, p99), all at once (`offline`, samples a
second), and queries that arrive as a Poisson process (`server`, the highest rate whose p99 stays
under a bound). Latencies of `server` count from when a query was due, waiting included.
"""

from __future__ import annotations

import queue
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np

from prunion.runtime.errors import InputError

__all__ = ["SCENARIOS", "Scenario", "ScenarioReport", "run_scenario", "scenario_line"]

Scenario = Literal["single", "multi", "offline", "server"]
SCENARIOS: tuple[Scenario, ...] = ("single", "multi", "offline", "server")
LOADGEN_NAMES = {"single": "SingleStream", "multi": "MultiStream", "server": "Server"}
PERCENTILE = {"single": 90, "multi": 99, "offline": 99, "server": 99}
FINER_THAN = 0.05  # the search for a rate ends when it is known within this share
SHORTEST_NS = 20_000
LEAST_QUERIES = 100  # a p99 of fewer is one query
BEYOND = 1.25  # the search for a rate starts at what can be answered at all, times this
BOUNDS = 20  # in a stretch: a queue that grows by 5 % of the time is over the bound by then


@dataclass(frozen=True)
class ScenarioReport:
    """One scenario's outcome; milliseconds.

    Attributes:
        driver: `LoadGen`, or `own` for the thin loop.
        samples: images in one query.
        latency_ms: the percentile that counts in this scenario: p90 of `single`, else p99.
        samples_per_second: images answered; of `server`, at the highest rate that held.
        bound_ms: of `server`, what p99 had to stay under.
        valid: whether 100 queries were answered, and in `server` a rate held for 20 bounds.
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
        """A JSON value."""
        return asdict(self)


@dataclass(frozen=True)
class _Stretch:
    """What one stretch of queries showed: latencies in ms, and how long it took."""

    queries: int
    latency_ms: float
    seconds: float
    valid: bool = True


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
    loadgen, rate = _loadgen(), None
    by_loadgen = loadgen is not None and scenario in LOADGEN_NAMES
    if scenario == "server":
        found, rate = _highest_rate(loadgen, call, seconds, bound_ms, workers)
    elif by_loadgen:
        found = _by_loadgen(loadgen, scenario, call, seconds, workers)
    else:  # LoadGen's offline query of thousands of samples, by turns of as many as fit a batch
        found = _one_after_the_other(call, seconds, PERCENTILE[scenario])
    rate = found.queries / found.seconds if rate is None else rate
    return ScenarioReport(
        scenario,
        "LoadGen" if by_loadgen else "own",
        samples,
        found.queries,
        found.latency_ms,
        PERCENTILE[scenario],
        rate * samples,
        bound_ms if scenario == "server" else None,
        found.valid,
    )


def scenario_line(report: ScenarioReport) -> str:
    """The outcome in one line for people."""
    held = ""
    if report.bound_ms is not None:
        told = "the most with" if report.samples_per_second else "and no rate keeps"
        held = f", {told} p99 under {report.bound_ms:g} ms"
    few = "" if report.valid else " (too short to be sure: give a longer --duration)"
    return (
        f"{report.scenario}: p{report.percentile} {report.latency_ms:.3f} ms, "
        f"{report.samples_per_second:.1f} images/s{held}{few}; {report.queries} queries of "
        f"{report.samples}, driven by {report.driver}"
    )


def _one_after_the_other(call: Callable[[], object], seconds: float, percentile: int) -> _Stretch:
    latencies, start = [], time.perf_counter()
    while (begin := time.perf_counter()) - start < seconds:
        call()
        latencies.append((time.perf_counter() - begin) * 1e3)
    spent = time.perf_counter() - start
    value = _percentile(latencies, percentile)
    return _Stretch(len(latencies), value, spent, len(latencies) >= LEAST_QUERIES)


def _percentile(latencies: Sequence[float] | np.ndarray, percentile: int) -> float:
    """As LoadGen has it: a latency that was measured, the first above the share of the others."""
    return float(np.sort(latencies)[len(latencies) * percentile // 100])


def _most_a_second(call: Callable[[], object], seconds: float, workers: int) -> float:
    """Queries a second where each worker asks again as soon as it is answered."""
    start = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        asked = [pool.submit(_one_after_the_other, call, seconds, 50) for _ in range(workers)]
    return sum(done.result().queries for done in asked) / (time.perf_counter() - start)


def _highest_rate(
    loadgen: Any, call: Callable[[], object], seconds: float, bound_ms: float, workers: int
) -> tuple[_Stretch, float]:
    """The stretch at the highest rate in queries a second that held, and that rate, by halving."""
    low, high = 0.0, BEYOND * _most_a_second(call, min(seconds, 1.0), workers)
    best: _Stretch | None = None
    while high - low > FINER_THAN * high:
        rate = (low + high) / 2
        if loadgen is not None:
            found = _by_loadgen(loadgen, "server", call, seconds, workers, rate, bound_ms)
        else:
            found = poisson_stretch(call, rate, seconds, workers)
        if found.latency_ms <= bound_ms:
            low, best = rate, found
        elif low == 0 and rate * seconds < LEAST_QUERIES / 4:
            break  # not even a rate that leaves the machine idle
        else:
            high = rate
    if best is None:
        return _Stretch(found.queries, found.latency_ms, seconds, valid=False), 0.0
    return replace(best, valid=best.valid and seconds * 1e3 >= BOUNDS * bound_ms), low


def poisson_stretch(
    call: Callable[[], object], rate: float, seconds: float, workers: int
) -> _Stretch:
    """Queries that arrive at `rate` a second, at random and apart from how fast they are answered.

    Each worker takes the next that is due, or waits for it: first come, first served.
    """
    number = max(round(rate * seconds), LEAST_QUERIES // 4)
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
            call()
            latencies[place] = (time.perf_counter() - start - due[place]) * 1e3

    with ThreadPoolExecutor(workers) as pool:
        for done in [pool.submit(work) for _ in range(workers)]:
            done.result()
    spent = time.perf_counter() - start
    return _Stretch(number, _percentile(latencies, 99), spent, number >= LEAST_QUERIES)


def _loadgen() -> Any:
    """MLPerf's LoadGen, None where it is not installed (`pip install mlcommons-loadgen`)."""
    try:
        return import_module("mlperf_loadgen")
    except ImportError:
        return None


def _by_loadgen(
    loadgen: Any,
    scenario: Scenario,
    call: Callable[[], object],
    seconds: float,
    workers: int,
    rate: float = 0.0,
    bound_ms: float = 0.0,
) -> _Stretch:
    """One performance run of LoadGen; a query of several samples is one of its samples here."""
    settings = loadgen.TestSettings()
    settings.scenario = getattr(loadgen.TestScenario, LOADGEN_NAMES[scenario])
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.min_duration_ms = round(seconds * 1e3)
    settings.max_duration_ms = round(seconds * 2e3)
    settings.min_query_count = LEAST_QUERIES // 4
    settings.multi_stream_samples_per_query = 1
    # From these it reckons how many queries to make ready; fewer would end the run early.
    settings.single_stream_expected_latency_ns = SHORTEST_NS
    settings.multi_stream_expected_latency_ns = SHORTEST_NS
    if scenario == "server":
        settings.server_target_qps = rate
        settings.server_target_latency_ns = round(bound_ms * 1e6)
        settings.server_target_latency_percentile = 0.99
    waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
    failed: list[BaseException] = []

    def work() -> None:
        while (sample := waiting.get()) is not None:
            try:
                if not failed:
                    call()
            except BaseException as exc:  # raised below: LoadGen waits for every answer
                failed.append(exc)
            loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(sample.id, 0, 0)])

    def issue(samples: Any) -> None:
        for sample in samples:
            waiting.put(sample)

    def nothing(*_: Any) -> None: ...

    threads = [threading.Thread(target=work, daemon=True) for _ in range(workers)]
    for thread in threads:
        thread.start()
    served = loadgen.ConstructSUT(issue, nothing)
    library = loadgen.ConstructQSL(1, 1, nothing, nothing)
    with tempfile.TemporaryDirectory() as folder:
        logs = loadgen.LogSettings()
        logs.log_output.outdir = folder
        logs.log_output.copy_summary_to_stdout = False
        logs.enable_trace = False
        start = time.perf_counter()
        loadgen.StartTestWithLogSettings(served, library, settings, logs)
        spent = time.perf_counter() - start
        detail = (Path(folder) / "mlperf_log_detail.txt").read_text("utf-8")
    loadgen.DestroyQSL(library)
    loadgen.DestroySUT(served)
    for _ in threads:
        waiting.put(None)
    if failed:
        raise failed[0]
    return _read_log(detail, PERCENTILE[scenario], spent)


def _read_log(detail: str, percentile: int, seconds: float) -> _Stretch:
    """What LoadGen's own log of the run says; `seconds` are those it took."""
    found: dict[str, float] = {}
    for key in ("result_query_count", f"result_{percentile}.00_percentile_latency_ns"):
        value = re.search(rf'"key": "{re.escape(key)}", "value": (\d+)', detail)
        if value is None:
            raise InputError("LoadGen answered no query in this time: give a longer --duration")
        found[key] = float(value[1])
    queries, latency = found.values()
    return _Stretch(int(queries), latency / 1e6, seconds, queries >= LEAST_QUERIES)
