"""MLPerf's LoadGen as the driver of a scenario, and what one stretch of queries shows."""

from __future__ import annotations

import math
import queue
import re
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from prunion.runtime.errors import InputError, OverloadError

__all__ = [
    "FEW",
    "LEAST",
    "LOADGEN_NAMES",
    "PERCENTILE",
    "Scenario",
    "Stretch",
    "by_loadgen",
    "load_loadgen",
]

Scenario = Literal["single", "multi", "offline", "server"]
LOADGEN_NAMES = {"single": "SingleStream", "multi": "MultiStream", "server": "Server"}
PERCENTILE = {"single": 90, "multi": 99, "offline": 99, "server": 99}
SHORTEST_NS = 20_000
# Queries below which LoadGen's early stopping takes no percentile for known, a p90 and a p99; of
# `offline` it is the rate that counts.
LEAST: Mapping[Scenario, int] = {"single": 64, "multi": 662, "offline": 64, "server": 662}
FEW = 25  # of which nothing is known, but that a rate is far too high


@dataclass(frozen=True)
class Stretch:
    """What one stretch of queries showed: latencies in ms, and how long it took.

    A query that the server had no room for was never answered: its latency is infinite.
    """

    queries: int
    latency_ms: float
    seconds: float
    valid: bool = True


def load_loadgen() -> Any:
    """MLPerf's LoadGen, None where it is not installed (`pip install mlcommons-loadgen`)."""
    try:
        return import_module("mlperf_loadgen")
    except ImportError:
        return None


def by_loadgen(
    loadgen: Any,
    scenario: Scenario,
    call: Callable[[], object],
    seconds: float,
    workers: int,
    rate: float = 0.0,
    bound_ms: float = 0.0,
) -> Stretch:
    """One performance run of LoadGen; a query of several samples is one of its samples here.

    LoadGen knows no refusals: where more of `server` were refused than may be late, all are.
    """
    crew = _Workers(loadgen, call, workers, refusals=scenario == "server")
    settings = _settings(loadgen, scenario, seconds, rate, bound_ms)
    detail, spent = _run(loadgen, settings, crew.issue)
    crew.end()
    if crew.failed:
        raise crew.failed[0]
    found = _read_log(detail, scenario, spent)
    over = 100 * len(crew.refused) > found.queries * (100 - PERCENTILE[scenario])
    return replace(found, latency_ms=math.inf) if over else found


class _Workers:
    """Threads that answer LoadGen's samples. Each is told as done: it waits for all of them.

    Attributes:
        failed: what calls raised; after the first there are no more.
        refused: what a server had no room for, where `refusals` are no failures.
    """

    def __init__(
        self, loadgen: Any, call: Callable[[], object], count: int, *, refusals: bool
    ) -> None:
        self.failed: list[BaseException] = []
        self.refused: list[BaseException] = []
        self._loadgen, self._call, self._refusals = loadgen, call, refusals
        self._waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def issue(self, samples: Any) -> None:
        for sample in samples:
            self._waiting.put(sample)

    def end(self) -> None:
        for _ in self._threads:
            self._waiting.put(None)

    def _work(self) -> None:
        while (sample := self._waiting.get()) is not None:
            try:
                if not self.failed:
                    self._call()
            except BaseException as exc:  # raised when the run is over
                missed = self._refusals and isinstance(exc, OverloadError)
                (self.refused if missed else self.failed).append(exc)
            answer = self._loadgen.QuerySampleResponse(sample.id, 0, 0)
            self._loadgen.QuerySamplesComplete([answer])


def _settings(
    loadgen: Any, scenario: Scenario, seconds: float, rate: float, bound_ms: float
) -> Any:
    settings = loadgen.TestSettings()
    settings.scenario = getattr(loadgen.TestScenario, LOADGEN_NAMES[scenario])
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.min_duration_ms = round(seconds * 1e3)
    settings.max_duration_ms = round(seconds * 2e3)
    settings.min_query_count = FEW
    settings.multi_stream_samples_per_query = 1
    # From these it reckons how many queries to make ready; fewer would end the run early.
    settings.single_stream_expected_latency_ns = SHORTEST_NS
    settings.multi_stream_expected_latency_ns = SHORTEST_NS
    if scenario == "server":
        settings.server_target_qps = rate
        settings.server_target_latency_ns = round(bound_ms * 1e6)
        settings.server_target_latency_percentile = 0.99
    return settings


def _run(loadgen: Any, settings: Any, issue: Callable[[Any], None]) -> tuple[str, float]:
    """LoadGen's own log of the run, and the seconds that it took."""

    def nothing(*_: Any) -> None: ...

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
    return detail, spent


def _read_log(detail: str, scenario: Scenario, seconds: float) -> Stretch:
    """What LoadGen's own log of the run says; `seconds` are those it took."""
    percentile = PERCENTILE[scenario]
    found: dict[str, float] = {}
    for key in ("result_query_count", f"result_{percentile}.00_percentile_latency_ns"):
        value = re.search(rf'"key": "{re.escape(key)}", "value": (\d+)', detail)
        if value is None:
            raise InputError("LoadGen answered no query in this time: give a longer --duration")
        found[key] = float(value[1])
    queries, latency = found.values()
    return Stretch(int(queries), latency / 1e6, seconds, queries >= LEAST[scenario])
