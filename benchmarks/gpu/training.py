"""Training on a GPU: images per second, how busy it is, and how far from the roofline.

python -m prunion.benchmarks.gpu training -o gpu.jsonl
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from prunion.benchmarks.cost import STEP_NETWORKS, STEPS, random_batches, random_training
from prunion.benchmarks.gpu.roofline import Device, least_seconds
from prunion.runtime.base import time_interleaved
from prunion.trainer.learning import Training

__all__ = ["CASES", "Tell", "TrainingCase", "training_row"]

Tell = Callable[[str], object]  # of a line, about what is being done


@dataclass(frozen=True)
class TrainingCase:
    """A network, its image side in pixels, and images per domain and step."""

    network: str
    side: int
    batch: int


CASES = (
    TrainingCase("resnet50", 224, 32),
    TrainingCase("wrn28_4", 64, 64),
    TrainingCase("lite0", 96, 64),
)


def training_row(
    case: TrainingCase,
    rates: Device,
    *,
    device: str = "cuda",
    domains: int = 6,
    trunk: str = "frozen",
    precision: str = "bf16",
    compiled: bool = True,
    seconds: float = 20.0,
    tell: Tell = lambda line: None,
) -> dict[str, Any]:
    """One line: steps that learn switches against plain per-domain-BatchNorm steps.

    Both are of the same network with the same trunk setting and see the same images, which lie
    where the network does; interleaved in one run. `roofline` is the least time a step can take
    over the time of the step with switches.
    """
    width = 2 if precision == "bf16" else 4
    options = {"trunk": trunk, "precision": precision, "compile": compiled}
    shape = (case.side, domains, case.batch, device)
    with _told(tell, "images"):
        images = random_batches(*shape)
    trainings = {}
    for name, limit in (("plain", 1.0), ("switches", 0.5)):
        with _told(tell, f"{name}: network"):
            trainings[name] = random_training(
                STEP_NETWORKS[case.network], *shape, limit, batches=images, **options
            )
    cases = {name: _epoch(training, device) for name, training in trainings.items()}
    for name, call in cases.items():  # one epoch has met all that is compiled or chosen at first
        with _told(tell, f"{name}: first {STEPS} steps"):
            call()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with _told(tell, f"steps for {seconds:g} s each"):
        timings = time_interleaved(cases, seconds=seconds, warmup=0, block_ms=1.0)
    with _told(tell, "how busy a step keeps the device"):
        busy = busy_share(trainings["switches"], device)
    step = {name: t.p50_ms / STEPS / 1e3 for name, t in timings.items()}
    count = domains * case.batch
    net = trainings["switches"].net
    least = least_seconds(net, count, rates, tuned=trunk == "tuned", width=width)
    return {
        "network": case.network,
        "side": case.side,
        "images": count,
        "domains": domains,
        **options,
        "images_per_second": {k: round(count / v, 1) for k, v in step.items()},
        "of_plain": round(step["plain"] / step["switches"], 3),
        "roofline": round(least / step["switches"], 3),
        "busy": busy,
        "peak_mib": torch.cuda.max_memory_allocated() >> 20 if device == "cuda" else None,
    }


def busy_share(training: Training, device: str) -> float | None:
    """Share of a step's wall time in which the GPU ran a kernel, by torch's profiler.

    Of one step: the profiler reads what it noted in Python, tens of seconds for an epoch.
    """
    if device != "cuda":
        return None
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        start = time.perf_counter()
        training.run_epoch(lambda figures: None, until=training.step + 1)
        torch.cuda.synchronize()
        wall = time.perf_counter() - start
    events = [e for e in profile.key_averages() if not e.key.startswith("Mem")]  # copies, fills
    kernels: float = sum(event.self_device_time_total for event in events)
    return round(kernels / 1e6 / wall, 3)


@contextmanager
def _told(tell: Tell, what: str) -> Iterator[None]:
    """Say what begins, and how long it took."""
    tell(f"  {what} …")
    start = time.perf_counter()
    yield
    tell(f"  {what}: {time.perf_counter() - start:.1f} s")


def _epoch(training: Training, device: str) -> Callable[[], None]:
    def call() -> None:
        training.run_epoch(lambda figures: None)
        if device == "cuda":
            torch.cuda.synchronize()

    return call
