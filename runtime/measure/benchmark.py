"""How fast a bundle answers on this machine."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prunion.runtime.backends import Session, SessionOptions, check_backend, run, settled
from prunion.runtime.base import (
    Backend,
    Precision,
    Timing,
    machine_facts,
    on_cpu,
    peak_rss_bytes,
    time_interleaved,
)
from prunion.runtime.bundle import Bundle, open_bundle
from prunion.runtime.errors import InputError
from prunion.runtime.graph import GraphForm
from prunion.runtime.model import open_pool
from prunion.runtime.tensorrt import free_gpu_bytes

__all__ = ["BenchReport", "BenchRow", "Timing", "bench", "format_report", "time_interleaved"]


@dataclass(frozen=True)
class BenchRow:
    """One session kind (`mixed`, `pinned:NAME`, or `single` of a specialised bundle) at one batch
    size."""

    session: str
    batch: int
    timing: Timing
    images_per_second: float


@dataclass(frozen=True)
class BenchReport:
    """Everything `prunion bench` prints; milliseconds and bytes.

    `load_ms` and `peak_rss_bytes` are of this process: the peak includes Python and whatever
    it had loaded before. `gpu_bytes` is what is less free on the GPU after the run than before it,
    None on a CPU and where cuda-python is not installed; what CUDA itself takes is not in it.
    """

    bundle: str
    rows: tuple[BenchRow, ...]
    load_ms: dict[str, float]
    rss_before_bytes: int
    peak_rss_bytes: int
    gpu_bytes: int | None
    file_bytes: dict[str, int]
    machine: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """A JSON value."""
        return asdict(self)


def bench(
    bundle: Bundle | Path | str,
    *,
    batches: Sequence[int] = (1, 8),
    seconds: float = 2.0,
    threads: int | None = None,
    domains: str = "mixed",
    backend: Backend = "cpu",
    precision: Precision = "fp32",
) -> BenchReport:
    """Time the mixed session and a pinned (single-domain) one at each batch size, interleaved.

    A specialised bundle has one session, `single`.

    Args:
        batches: sizes of batches, 1 … 4096 images.
        seconds: spent for each session and batch size.
        threads: threads inside one operator; None leaves it to the backend.
        domains: `mixed` (batches go round all domains; the pinned session is the first domain's)
            or one domain's name for both.
        precision: which of the bundle's graphs, a key of `manifest.graphs`.

    Raises:
        BundleError: the bundle is damaged, or there is no such graph.
        DomainError: `domains` is no domain of the bundle.
        InputError: a batch size is out of range.
        PrunionError: there is no such backend, or it does not start.
    """
    if not batches or min(batches) < 1 or max(batches) > 4096:
        raise InputError("batch sizes must be in 1..4096")
    bundle = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    rows = _rows(bundle, domains)
    options = SessionOptions(check_backend(backend), threads)
    before, free = peak_rss_bytes(), _free_gpu_bytes(settled(backend, ""))
    load_ms: dict[str, float] = {}
    pool = open_pool(bundle, options, precision)
    form = pool.form
    if not pool.pins:
        name = "single" if form.single else "mixed"
        sessions = {name: _timed(name, load_ms, pool.mixed)}
    else:
        pack = bundle.pack(bundle.domains[rows[0]])
        name = f"pinned:{pack.name}"
        sessions = {
            "mixed": _timed("mixed", load_ms, pool.mixed),
            name: _timed(name, load_ms, lambda: pool.make(pack, sliced=False).session),
        }
    cases = _cases(bundle, form, sessions, batches, rows)
    timings = time_interleaved({f"{k}@{n}": call for (k, n), call in cases.items()}, seconds)
    table = []
    for name, batch in cases:
        timing = timings[f"{name}@{batch}"]
        table.append(BenchRow(name, batch, timing, batch * 1e3 / timing.mean_ms))
    providers = [str(session.get_providers()[0]) for session in sessions.values()]
    left = None if all(map(on_cpu, providers)) else _free_gpu_bytes(backend)
    return BenchReport(
        bundle=str(bundle.path),
        rows=tuple(table),
        load_ms=load_ms,
        rss_before_bytes=before,
        peak_rss_bytes=peak_rss_bytes(),
        gpu_bytes=None if free is None or left is None else free - left,
        file_bytes={name: bundle.file(name).stat().st_size for name in bundle.manifest.files},
        machine=machine_facts(threads),
    )


def format_report(report: BenchReport) -> str:
    """The report as a table for people."""
    lines = [f"{'session':<28}{'batch':>6}{'p50 ms':>10}{'p90 ms':>10}{'p99 ms':>10}"]
    lines[0] += f"{'mean ms':>10}{'images/s':>11}{'runs':>7}"
    for row in report.rows:
        t = row.timing
        figures = f"{t.p50_ms:>10.3f}{t.p90_ms:>10.3f}{t.p99_ms:>10.3f}{t.mean_ms:>10.3f}"
        text = f"{row.session:<28}{row.batch:>6}{figures}"
        lines.append(f"{text}{row.images_per_second:>11.1f}{t.runs:>7}")
    loads = ", ".join(f"{name} {ms:.1f} ms" for name, ms in report.load_ms.items())
    graphs = {k: v for k, v in report.file_bytes.items() if k.endswith(".onnx")}
    sizes = ", ".join(f"{name} {size:,} bytes" for name, size in graphs.items())
    mib = f"{report.peak_rss_bytes / 2**20:.0f} MiB"
    before = f"{report.rss_before_bytes / 2**20:.0f} MiB"
    machine = ", ".join(f"{key} {value}" for key, value in report.machine.items())
    lines += [f"load: {loads}", f"peak memory: {mib} ({before} before loading)"]
    if report.gpu_bytes is not None:
        lines.append(f"GPU memory: {report.gpu_bytes / 2**20:.0f} MiB taken")
    return "\n".join([*lines, f"files: {sizes}", f"machine: {machine}"])


def _free_gpu_bytes(backend: Backend) -> int | None:
    return None if backend in ("cpu", "openvino") else free_gpu_bytes()


def _rows(bundle: Bundle, domains: str) -> list[int]:
    if domains == "mixed" and "mixed" not in bundle.domains:
        return list(range(len(bundle.domains)))
    bundle.domain(domains)
    return [bundle.domains.index(domains)]


def _timed(name: str, load_ms: dict[str, float], make: Callable[[], Session]) -> Session:
    start = time.perf_counter()
    session = make()
    load_ms[name] = (time.perf_counter() - start) * 1e3
    return session


def _cases(
    bundle: Bundle,
    form: GraphForm,
    sessions: Mapping[str, Session],
    batches: Sequence[int],
    rows: list[int],
) -> dict[tuple[str, int], Callable[[], object]]:
    cases: dict[tuple[str, int], Callable[[], object]] = {}
    for batch in dict.fromkeys(batches):
        image, domain = form.noise(batch), np.resize(np.array(rows, dtype=np.int64), batch)
        for name, session in sessions.items():
            feeds: dict[str, np.ndarray] = {"image": image}
            if name == "mixed":
                fed = bundle.domains if session.needs_tables else ()
                tables = form.tables([bundle.pack(x) for x in fed]) if fed else None
                feeds = form.feeds(image, domain, tables)
            cases[name, batch] = functools.partial(run, session, feeds)
    return cases
