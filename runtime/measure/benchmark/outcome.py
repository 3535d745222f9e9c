"""What a bench found: sessions, rivals, memory, energy, and the machine around them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from prunion.runtime.base import MachineState, Timing
from prunion.runtime.measure.benchmark.fresh import Fresh
from prunion.runtime.measure.comparison import Comparison

__all__ = ["BenchReport", "BenchRow", "Energy", "Engine"]


@dataclass(frozen=True)
class BenchRow:
    """One contender at one batch size.

    Attributes:
        session: `mixed`, `pinned:NAME`, or `single` of a specialised bundle; or a rival's name.
        warm_up_calls: how many calls came before the first that counts.
        steady: whether it had got no faster by then.
    """

    session: str
    batch: int
    timing: Timing
    images_per_second: float
    warm_up_calls: int
    steady: bool


@dataclass(frozen=True)
class Energy:
    """What one image of a contender's batches took, in joules by meter; other load is in it."""

    session: str
    batch: int
    joules_per_image: dict[str, float]


@dataclass(frozen=True)
class Engine:
    """A compiled engine; `scratch_bytes` of the GPU beside its weights, as it says itself."""

    session: str
    bytes: int
    scratch_bytes: int


@dataclass(frozen=True)
class BenchReport:
    """Everything `prunion bench` prints; milliseconds and bytes.

    `model_sha256` is of the network, "" where its bundle does not tell.
    `asked` is what was measured: `precision`, `backend` as it was asked for, the `providers` that
    answered by session, `domains`, the names `batches_of` which batches were, and `threads`.
    `load_ms` and `peak_rss_bytes` are of this process: the peak includes Python and whatever
    it had loaded before. `fresh` has the same for each contender in a process of its own.
    `gpu_bytes` is what is less free on the GPU after the run than before it, None on a CPU and
    where cuda-python is not installed; what CUDA itself takes is not in it. `rival_bytes` is of
    the files that rivals are loaded from, `engines` of what TensorRT runs as its engines tell.
    `overhead_ms` is what timing adds to one call, `load_after` the machine's load average when all
    was done; that of before is in `machine`.
    `energy` and `idle_watts` (before loading) are empty where the machine does not tell. `before`
    and `after` are the machine's clocks and temperatures, `slowed_down` what may be wrong there;
    `widths_warning` is about widths that the backend's fast kernels do not take, `widths_cost`
    what they cost here: measured, empty where there are none or nothing could be measured.
    """

    bundle: str
    trunk_hash: str
    model_sha256: str
    asked: dict[str, Any]
    rows: tuple[BenchRow, ...]
    comparisons: tuple[Comparison, ...]
    load_ms: dict[str, float]
    fresh: tuple[Fresh, ...]
    rss_before_bytes: int
    peak_rss_bytes: int
    gpu_bytes: int | None
    file_bytes: dict[str, int]
    rival_bytes: dict[str, int]
    engines: tuple[Engine, ...]
    overhead_ms: float
    energy: tuple[Energy, ...]
    idle_watts: dict[str, float]
    machine: dict[str, Any]
    before: MachineState
    after: MachineState
    slowed_down: str
    widths_warning: str
    widths_cost: str
    load_after: float | None
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON value."""
        return asdict(self)
