"""`python -m prunion.benchmarks.cost.agreement`: do bench's figures agree with others' of the same
calls?

ONNX Runtime's own profile tells how long each run took inside of it, of the very calls that bench's
loop times. MLPerf's LoadGen makes calls of its own, and these very calls are timed as bench times.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import click
import numpy as np
import onnxruntime

from prunion.benchmarks.random_bundle import random_bundle
from prunion.runtime.backends import OrtSession, run
from prunion.runtime.base import machine_facts, summary, time_blocks, warm_up
from prunion.runtime.cli import OneLineCommand, seconds_option
from prunion.runtime.graph import pin_pack
from prunion.runtime.measure import run_scenario
from prunion.runtime.model import load

__all__ = ["Agreement", "agreement"]

BLOCK_MS, BLOCKS, WARM_UP_S = 60.0, 24, 2.0  # as bench has them


@dataclass(frozen=True)
class Agreement:
    """One session and batch size; milliseconds.

    Attributes:
        p50: of bench's loop.
        profiled_p50: of ONNX Runtime's `model_run`, of the same calls.
        loadgen_p90: LoadGen's SingleStream figure, None where it is not installed; without
            `hand_over`, its figure of a call that does nothing: it hands queries to a thread.
        p90: of LoadGen's calls, timed within as bench times.
        overhead: what timing adds to a call, as a share of p50.
    """

    network: str
    batch: int
    p50: float
    profiled_p50: float
    p90: float | None
    loadgen_p90: float | None
    hand_over: float | None
    overhead: float

    @property
    def line(self) -> str:
        """A row of the table."""
        loadgen = " | not installed | "
        if self.p90 is not None and self.loadgen_p90 is not None and self.hand_over is not None:
            own = self.loadgen_p90 - self.hand_over
            loadgen = f"{self.p90:.3f} | {self.loadgen_p90:.3f} | {own / self.p90:.3f}"
        return (
            f"| {self.network} | {self.batch} | {self.p50:.3f} | {self.profiled_p50:.3f} "
            f"| {self.p50 / self.profiled_p50:.3f} | {loadgen} | {self.overhead:.3%} |"
        )


def agreement(
    name: str, graph: bytes, image: np.ndarray, seconds: float, folder: Path, threads: int = 1
) -> Agreement:
    """Time one session of a pinned graph in bench's way, profiled; then ask it by LoadGen."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.enable_profiling = True
    settings.profile_file_prefix = str(folder / "profile")
    session = _session(graph, settings)
    call = partial(run, OrtSession(session), {"image": image})
    skipped, _ = warm_up(call, WARM_UP_S)
    (blocks,) = time_blocks({name: call}, seconds, min(BLOCK_MS, seconds * 1e3 / BLOCKS)).values()
    events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    runs = [x["dur"] / 1e3 for x in events if x["name"] == "model_run"][skipped:]
    same: list[float] = []
    for block in blocks:  # each begins with a call that does not count
        same += runs[1 : len(block) + 1]
        del runs[: len(block) + 1]
    timing = summary(np.concatenate(blocks))
    settings.enable_profiling = False
    plain = OrtSession(_session(graph, settings))
    p90, asked, nothing = _loadgen(partial(run, plain, {"image": image}), seconds)
    (idle,) = time_blocks({"": lambda: None}, 0.002, 1.0).values()
    overhead = float(np.median(np.concatenate(idle))) / timing.p50_ms
    profiled = float(np.median(same))
    return Agreement(name, len(image), timing.p50_ms, profiled, p90, asked, nothing, overhead)


def _session(graph: bytes, settings: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])


def _loadgen(
    call: Callable[[], object], seconds: float
) -> tuple[float | None, float | None, float | None]:
    """Own p90 of LoadGen's calls, LoadGen's, and its p90 of a call that does nothing.

    None where it is not installed.
    """
    if find_spec("mlperf_loadgen") is None:
        return None, None, None
    taken: list[float] = []

    def timed() -> None:
        start = time.perf_counter()
        call()
        taken.append((time.perf_counter() - start) * 1e3)

    asked = run_scenario("single", timed, 1, seconds)
    idle = run_scenario("single", lambda: None, 1, min(seconds, 1.0))
    own = summary(np.array(taken[-asked.queries :])).p90_ms
    return own, asked.latency_ms, idle.latency_ms


@click.command(cls=OneLineCommand)
@click.option("--only", default="resnet18,mobilenet_v2", show_default=True, help="torchvision's.")
@click.option("--side", default=96, show_default=True, help="Pixels.")
@click.option("--batches", default="1,8", show_default=True)
@click.option("--threads", default=1, show_default=True)
@seconds_option(3.0, "For each way and case.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(only: str, side: int, batches: str, threads: int, seconds: float, as_json: bool) -> None:
    """Hold bench's p50 to ONNX Runtime's profile, its p90 to LoadGen's summary."""
    titles = "network batch p50 profiled ratio p90 LoadGen ratio overhead".split()
    found = []
    if not as_json:
        click.echo(f"| {' | '.join(titles)} |\n" + "| --- " * len(titles) + "|")
    for name in only.split(","):
        with tempfile.TemporaryDirectory() as folder:
            bundle = random_bundle(Path(folder) / "x.prunion", name, 2, size=side)
            model = load(bundle, "cpu", threads=threads)
            pack = model.bundle.pack(model.domains[0])
            graph = pin_pack(model.sessions.graph.read(), pack)
            for batch in map(int, batches.split(",")):
                image = model.sessions.form.noise(batch)
                row = agreement(name, graph, image, seconds, Path(folder), threads)
                found.append(row)
                if not as_json:
                    click.echo(row.line)
    facts = machine_facts(threads)
    rows = {"machine": facts, "rows": [asdict(x) for x in found]}
    click.echo(json.dumps(rows if as_json else facts, indent=1))


if __name__ == "__main__":
    main()
