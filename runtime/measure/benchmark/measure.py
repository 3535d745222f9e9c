"""How fast a bundle answers on this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from prunion.runtime.backends import real_backend
from prunion.runtime.base import (
    Backend,
    Meter,
    Precision,
    Timing,
    energy_meters,
    is_number,
    machine_facts,
    measure_energy,
    on_cpu,
    open_gpu,
    peak_rss_bytes,
    read_state,
    shown,
    slowed_down,
    summary,
    time_blocks,
    time_interleaved,
    warm_up,
    whole_argument,
)
from prunion.runtime.bundle import Bundle, block_of, open_bundle, widths_warning
from prunion.runtime.errors import InputError
from prunion.runtime.measure.benchmark.contenders import (
    Setup,
    cut_to_blocks,
    domain_rows,
    open_all,
    pairs_of,
    widths_cost,
)
from prunion.runtime.measure.benchmark.fresh import Fresh, measure_fresh
from prunion.runtime.measure.benchmark.outcome import BenchReport, BenchRow, Energy, Engine
from prunion.runtime.measure.benchmark.rivals import all_contenders
from prunion.runtime.measure.comparison import Comparison, compare_blocks
from prunion.runtime.tensorrt import free_gpu_bytes

__all__ = ["BenchReport", "BenchRow", "Energy", "Engine", "Timing", "bench", "time_interleaved"]

BLOCK_MS, BLOCKS = 60.0, 24
WARM_UP_S = 2.0
MOST_IMAGES = 4096  # of a batch
# Counters of energy move every 100 ms or so, and idle takes no longer to see.
LEAST_ENERGY_S, MOST_ENERGY_S, IDLE_S = 0.5, 5.0, 0.5


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
    several = batches if isinstance(batches, Iterable) else [batches]
    batches = [whole_argument("a batch size", batch, MOST_IMAGES) for batch in several]
    if not batches:
        raise InputError("no batch sizes given: name at least one")
    if not is_number(seconds) or seconds <= 0:
        raise InputError(f"seconds is {shown(seconds)}: give a time above 0")
    bundle = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    setup = Setup(
        str(bundle.place),
        domains,
        backend,
        precision,
        threads,
        (against,) if isinstance(against, str) else tuple(against),
        str(unpruned or ""),
        {name: [str(x) for x in paths] for name, paths in (pruned or {}).items()},
    )
    machine = machine_facts(threads)
    engine = real_backend(setup.options.backend)
    on_gpu = engine not in ("cpu", "openvino")
    gpu = open_gpu() if on_gpu else None
    slow_widths = widths_warning(
        bundle.manifest.widths, block_of(engine, precision), f"this {'GPU' if on_gpu else 'CPU'}"
    )
    meters, state = energy_meters(gpu=gpu), read_state(gpu=gpu)
    idle = measure_energy(meters, lambda: time.sleep(IDLE_S), 0.0) if meters else None
    own, rivals = all_contenders(setup, bundle)
    entered, pairs = [*own, *rivals], pairs_of(own, rivals)
    block = block_of(engine, precision)
    even = cut_to_blocks(setup, bundle, block) if slow_widths and block else None
    if even:
        pinned = next(x for x in own if x.one_domain)
        entered.append(even[0])
        pairs.append((pinned, even[0]))
    before, free = peak_rss_bytes(), _free_gpu_bytes(engine)
    load_ms: dict[str, float] = {}
    opened, notes = open_all(entered, load_ms)
    entered = [x for x in entered if x.name in opened]
    pairs = [pair for pair in pairs if all(x.name in opened for x in pair)]
    for batch in dict.fromkeys(batches):  # before minutes are spent on the first
        for x in opened.values():
            if x.check and (note := x.check(batch)) and note not in notes:
                notes.append(note)
    rows: list[BenchRow] = []
    comparisons: list[Comparison] = []
    energy: list[Energy] = []
    for batch in dict.fromkeys(batches):
        calls = {name: x.call(batch) for name, x in opened.items()}
        made, blocks = _time(calls, batch, seconds)
        kept = {x.name: calls[x.name] for x in entered if not x.aside}
        rows += [row for row in made if row.session in kept]
        comparisons += [
            compare_blocks(one.name, other.name, batch, blocks[one.name], blocks[other.name])
            for one, other in pairs
        ]
        energy += _energy(meters, kept, batch, seconds) if meters else []
    after = read_state(gpu=gpu)
    left = None if all(on_cpu(x.provider) for x in opened.values()) else _free_gpu_bytes(backend)
    peak, sizes = peak_rss_bytes(), {k: x.file_bytes for k, x in opened.items()}
    told = ((name, x.engine_bytes, x.scratch_bytes) for name, x in opened.items())
    engines = tuple(Engine(name, a, b) for name, a, b in told if a is not None and b is not None)
    providers = {name: x.provider for name, x in opened.items()}
    del opened  # the fresh processes need the memory
    asked = [x for x in entered if fresh and not x.aside]
    started = [measure_fresh(setup, x, max(batches)) for x in asked]
    return BenchReport(
        bundle=str(bundle.path),
        trunk_hash=bundle.manifest.trunk_hash,
        model_sha256=bundle.manifest.model_sha256,
        asked={
            "precision": precision,
            "backend": backend,
            "providers": providers,
            "domains": domains,
            "batches_of": [bundle.domains[row] for row in domain_rows(bundle, domains)],
            "threads": threads,
        },
        rows=tuple(rows),
        comparisons=tuple(comparisons),
        load_ms=load_ms,
        fresh=tuple(x for x in started if isinstance(x, Fresh)),
        rss_before_bytes=before,
        peak_rss_bytes=peak,
        gpu_bytes=None if free is None or left is None else free - left,
        file_bytes=dict(bundle.sizes),
        rival_bytes={name: size for name, size in sizes.items() if size},
        engines=engines,
        overhead_ms=_overhead_ms(),
        energy=tuple(energy),
        idle_watts={k: x / idle.seconds for k, x in idle.joules.items()} if idle else {},
        machine=machine,
        before=state,
        after=after,
        slowed_down=slowed_down(state, after),
        widths_warning=slow_widths,
        widths_cost=widths_cost(even, comparisons),
        load_after=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        notes=(*notes, *(x for x in started if isinstance(x, str))),
    )


def _time(
    calls: Mapping[str, Callable[[], object]], batch: int, seconds: float
) -> tuple[list[BenchRow], dict[str, list[np.ndarray]]]:
    warmed = {name: warm_up(call, WARM_UP_S) for name, call in calls.items()}
    blocks = time_blocks(calls, seconds, min(BLOCK_MS, seconds * 1e3 / BLOCKS))
    rows = []
    for name in calls:
        timing = summary(np.concatenate(blocks[name]))
        speed = batch * 1e3 / timing.mean_ms
        rows.append(BenchRow(name, batch, timing, speed, *warmed[name]))
    return rows, blocks


def _energy(
    meters: list[Meter], calls: Mapping[str, Callable[[], object]], batch: int, seconds: float
) -> list[Energy]:
    """Each case alone, since meters are too slow for the blocks that take turns."""
    spent = min(max(seconds, LEAST_ENERGY_S), MOST_ENERGY_S)
    found = []
    for name, call in calls.items():
        used = measure_energy(meters, call, spent)
        images = used.calls * batch
        found.append(Energy(name, batch, {k: x / images for k, x in used.joules.items()}))
    return found


def _overhead_ms() -> float:
    """What timing adds to a call, by timing calls of nothing."""
    (blocks,) = time_blocks({"": lambda: None}, 0.002, 1.0).values()
    return float(np.median(np.concatenate(blocks)))


def _free_gpu_bytes(backend: Backend) -> int | None:
    return None if backend in ("cpu", "openvino") else free_gpu_bytes()
