"""All contenders in this process: opened beside each other, timed in turn, and let go.

Whatever is measured afterwards has the memory to itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from prunion.runtime.backends import real_backend
from prunion.runtime.base import (
    Backend,
    MachineState,
    on_cpu,
    peak_rss_bytes,
    summary,
    time_blocks,
    warm_up,
)
from prunion.runtime.bundle import Bundle
from prunion.runtime.measure.benchmark.contenders import (
    Contender,
    Opened,
    Setup,
    cut_to_blocks,
    open_all,
    pairs_of,
    widths_cost,
)
from prunion.runtime.measure.benchmark.outcome import BenchRow, Energy, Engine
from prunion.runtime.measure.benchmark.rivals import all_contenders
from prunion.runtime.measure.benchmark.sensors import Sensors
from prunion.runtime.measure.comparison import Comparison, compare_blocks
from prunion.runtime.tensorrt import free_gpu_bytes

__all__ = ["Together", "measure_together", "on_gpu"]

BLOCK_MS, BLOCKS = 60.0, 24
WARM_UP_S = 2.0


@dataclass(frozen=True)
class Together:
    """What was found, in plain values: with a contender's `open` or `call` its session would stay.

    Attributes:
        digests: of what each session was opened from, without those that are timed aside.
        after: the machine's state as the last call was done.

    The others are those of a `BenchReport`.
    """

    digests: dict[str, str]
    providers: dict[str, str]
    rows: tuple[BenchRow, ...]
    comparisons: tuple[Comparison, ...]
    energy: tuple[Energy, ...]
    load_ms: dict[str, float]
    rss_before_bytes: int
    peak_rss_bytes: int
    gpu_bytes: int | None
    rival_bytes: dict[str, int]
    engines: tuple[Engine, ...]
    widths_cost: str
    after: MachineState
    notes: tuple[str, ...]


def measure_together(
    setup: Setup,
    bundle: Bundle,
    batches: Sequence[int],
    seconds: float,
    sensors: Sensors,
    *,
    block: int | None,
) -> Together:
    """Open and time all contenders of `setup`. None of their sessions is left when this returns.

    With a `block`, also the pinned session cut to widths in multiples of it. Raises as `bench`.
    """
    engine = real_backend(setup.options.backend)
    line_up = _enter(setup, bundle, block)
    rss_before, free = peak_rss_bytes(), _free_gpu_bytes(engine)
    opened, load_ms, missing = open_all(line_up.entered)
    line_up = line_up.only(opened)
    unsure = _check(opened, batches)
    timed = [_time_batch(line_up, opened, batch, seconds, sensors) for batch in batches]
    comparisons = tuple(x for one in timed for x in one.comparisons)
    after = sensors.state()
    left = None if all(on_cpu(x.provider) for x in opened.values()) else _free_gpu_bytes(engine)
    told = ((name, x.engine_bytes, x.scratch_bytes) for name, x in opened.items())
    return Together(
        digests={x.name: x.digest for x in line_up.answering},
        providers={name: x.provider for name, x in opened.items()},
        rows=tuple(x for one in timed for x in one.rows),
        comparisons=comparisons,
        energy=tuple(x for one in timed for x in one.energy),
        load_ms=load_ms,
        rss_before_bytes=rss_before,
        peak_rss_bytes=peak_rss_bytes(),
        gpu_bytes=None if free is None or left is None else free - left,
        rival_bytes={name: x.file_bytes for name, x in opened.items() if x.file_bytes},
        engines=tuple(Engine(k, a, b) for k, a, b in told if a is not None and b is not None),
        widths_cost=widths_cost(line_up.even, comparisons),
        after=after,
        notes=tuple(dict.fromkeys([*missing, *unsure])),
    )


@dataclass(frozen=True)
class _LineUp:
    """Who takes part.

    Attributes:
        pairs: of which the first is compared with the second.
        even: what `cut_to_blocks` gives.
    """

    entered: list[Contender]
    pairs: list[tuple[Contender, Contender]]
    even: tuple[Contender, float] | None

    @property
    def answering(self) -> list[Contender]:
        """Those that are more than a figure beside another's."""
        return [x for x in self.entered if not x.aside]

    def only(self, names: Collection[str]) -> _LineUp:
        entered = [x for x in self.entered if x.name in names]
        pairs = [pair for pair in self.pairs if all(x.name in names for x in pair)]
        return replace(self, entered=entered, pairs=pairs)


def _enter(setup: Setup, bundle: Bundle, block: int | None) -> _LineUp:
    own, rivals = all_contenders(setup, bundle)
    entered, pairs = [*own, *rivals], pairs_of(own, rivals)
    even = cut_to_blocks(setup, bundle, block) if block else None
    if even:
        pinned = next(x for x in own if x.one_domain)
        entered.append(even[0])
        pairs.append((pinned, even[0]))
    return _LineUp(entered, pairs, even)


def _check(opened: Mapping[str, Opened], batches: Sequence[int]) -> list[str]:
    """Every batch of every graph that is not prunion's own, before minutes are spent on the first.

    Returns what could not be checked; raises InputError.
    """
    checks = [x.check for x in opened.values() if x.check]
    told = [check(batch) for batch in batches for check in checks]
    return [note for note in told if note]


@dataclass(frozen=True)
class _Timed:
    """What was found at one size of batches."""

    rows: list[BenchRow]
    comparisons: list[Comparison]
    energy: list[Energy]


def _time_batch(
    line_up: _LineUp, opened: Mapping[str, Opened], batch: int, seconds: float, sensors: Sensors
) -> _Timed:
    calls = {name: x.call(batch) for name, x in opened.items()}
    rows, blocks = _time(calls, batch, seconds)
    comparisons = [
        compare_blocks(one.name, other.name, batch, blocks[one.name], blocks[other.name])
        for one, other in line_up.pairs
    ]
    answering = {x.name: calls[x.name] for x in line_up.answering}
    energy = sensors.energy(answering, batch, seconds)
    return _Timed([row for row in rows if row.session in answering], comparisons, energy)


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


def on_gpu(engine: Backend) -> bool:
    """Whether that backend may run on a GPU; `auto`, while it leaves a choice."""
    return engine not in ("cpu", "openvino")


def _free_gpu_bytes(engine: Backend) -> int | None:
    return free_gpu_bytes() if on_gpu(engine) else None
