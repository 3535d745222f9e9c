"""How fast a bundle answers on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from prunion.runtime.backends import real_backend
from prunion.runtime.base import (
    Backend,
    Precision,
    Timing,
    is_number,
    machine_facts,
    shown,
    slowed_down,
    time_blocks,
    time_interleaved,
    whole_argument,
)
from prunion.runtime.bundle import Bundle, block_of, open_bundle, widths_warning
from prunion.runtime.errors import InputError
from prunion.runtime.measure.benchmark.contenders import Setup, domain_rows
from prunion.runtime.measure.benchmark.fresh import Fresh, measure_fresh
from prunion.runtime.measure.benchmark.outcome import BenchReport, BenchRow, Energy, Engine
from prunion.runtime.measure.benchmark.sensors import open_sensors
from prunion.runtime.measure.benchmark.together import measure_together, on_gpu

__all__ = ["BenchReport", "BenchRow", "Energy", "Engine", "Timing", "bench", "time_interleaved"]

MOST_IMAGES = 4096  # of a batch


def bench(
    bundle: Bundle | Path | str,
    *,
    batches: Sequence[int] = (1, 8),
    seconds: float = 2.0,
    threads: int | None = None,
    domains: str = "mixed",
    backend: Backend = "cpu",
    precision: Precision = "fp32",
    against: Sequence[str] = (),
    unpruned: Path | str | None = None,
    pruned: Mapping[str, Sequence[Path | str]] | None = None,
    fresh: bool = True,
) -> BenchReport:
    """Time the mixed session and a pinned (single-domain) one at each batch size, interleaved.

    A specialised bundle has one session, `single`. Images are random: of zeros some processors
    multiply faster.

    Args:
        batches: sizes of batches, 1 … 4096 images.
        seconds: spent for each session and batch size, warming up apart.
        threads: threads inside one operator; None leaves it to the backend.
        domains: `mixed` (batches go round all domains; the pinned session is the first domain's)
            or one domain's name for both. `mixed` is no domain's name here.
        precision: which of the bundle's graphs, a key of `manifest.graphs`.
        against: what to compare with, in turn: `openvino` (the same graph), `specialised` (one
            domain's session, sliced to its own channels), `backbone` (the unpruned trunk with all
            heads), `separate` (an unpruned network for each domain), `separate-pruned` (each pruned
            alone to the bundle's budget), `separate-pruned-total` (all of them together to it),
            `torch-pruning` (one network of as many parameters) or the path of an `.onnx` file.
        unpruned: the unpruned network as a selectable graph, for `backbone` and `separate`.
        pruned: the graphs of the last three by their names, `image` `[N, 3, H, W]` to `logits`, of
            the first two one for each domain.
        fresh: also load each session in a process of its own, for its memory and first call.

    Raises:
        BundleError: the bundle is damaged, or there is no such graph.
        DomainError: `domains` is no domain of the bundle.
        InputError: a batch size is out of range, there is no time to measure in, or a rival is
            unknown or lacks what it is made from.
        PrunionError: there is no such backend, or it does not start.
    """
    sizes = _sizes(batches)
    if not is_number(seconds) or seconds <= 0:
        raise InputError(f"seconds is {shown(seconds)}: give a time above 0")
    bundle = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    setup = Setup(
        str(bundle.place),
        domains=domains,
        backend=backend,
        precision=precision,
        threads=threads,
        against=(against,) if isinstance(against, str) else tuple(against),
        unpruned=str(unpruned or ""),
        pruned={name: [str(x) for x in paths] for name, paths in (pruned or {}).items()},
    )
    machine = machine_facts(threads)
    engine = real_backend(setup.options.backend)
    block, where = block_of(engine, precision), "this GPU" if on_gpu(engine) else "this CPU"
    slow_widths = widths_warning(bundle.manifest.widths, block, where)
    sensors = open_sensors(gpu=on_gpu(engine))
    before, idle_watts = sensors.state(), sensors.idle_watts()
    found = measure_together(
        setup, bundle, sizes, seconds, sensors, block=block if slow_widths else None
    )
    alone = [
        measure_fresh(setup, name, digest, max(sizes))
        for name, digest in found.digests.items()
        if fresh
    ]
    return BenchReport(
        bundle=str(bundle.path),
        trunk_hash=bundle.manifest.trunk_hash,
        model_sha256=bundle.manifest.model_sha256,
        asked={
            "precision": precision,
            "backend": backend,
            "providers": found.providers,
            "domains": domains,
            "batches_of": [bundle.domains[row] for row in domain_rows(bundle, domains)],
            "threads": threads,
        },
        rows=found.rows,
        comparisons=found.comparisons,
        load_ms=found.load_ms,
        fresh=tuple(x for x in alone if isinstance(x, Fresh)),
        rss_before_bytes=found.rss_before_bytes,
        peak_rss_bytes=found.peak_rss_bytes,
        gpu_bytes=found.gpu_bytes,
        file_bytes=dict(bundle.sizes),
        rival_bytes=found.rival_bytes,
        engines=found.engines,
        overhead_ms=_overhead_ms(),
        energy=found.energy,
        idle_watts=idle_watts,
        machine=machine,
        before=before,
        after=found.after,
        slowed_down=slowed_down(before, found.after),
        widths_warning=slow_widths,
        widths_cost=found.widths_cost,
        load_after=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        notes=(*found.notes, *(x for x in alone if isinstance(x, str))),
    )


def _sizes(batches: Iterable[int] | int) -> list[int]:
    """Each size once. Raises InputError."""
    several = batches if isinstance(batches, Iterable) else [batches]
    sizes = [whole_argument("a batch size", batch, MOST_IMAGES) for batch in several]
    if not sizes:
        raise InputError("no batch sizes given: name at least one")
    return list(dict.fromkeys(sizes))


def _overhead_ms() -> float:
    """What timing adds to a call, by timing calls of nothing."""
    (blocks,) = time_blocks({"": lambda: None}, 0.002, 1.0).values()
    return float(np.median(np.concatenate(blocks)))
