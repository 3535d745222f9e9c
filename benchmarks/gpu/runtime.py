"""The exported bundle on a GPU through the runtime: each backend that is there, mixed and single.

python -m prunion.benchmarks.gpu runtime -o gpu.jsonl
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from prunion.benchmarks.random_bundle import random_bundle
from prunion.exporter.options import ExportOptions
from prunion.runtime import load
from prunion.runtime.base import Backend, Precision, time_interleaved
from prunion.runtime.errors import PrunionError
from prunion.runtime.model import Model
from prunion.runtime.tensorrt import free_gpu_bytes

__all__ = ["NETWORKS", "runtime_rows"]

NETWORKS = (("resnet50", 224), ("mobilenet_v2", 96))
BACKENDS: Mapping[str, tuple[Backend, ...]] = {
    "cuda": ("cuda", "tensorrt", "tensorrt-rtx"),
    "cpu": ("cpu",),
}
PRECISIONS: Mapping[str, tuple[Precision, ...]] = {"cuda": ("fp32", "fp16"), "cpu": ("fp32",)}
BATCHES = (1, 8, 32)
DOMAINS = 4

Row = Callable[[], dict[str, Any]]
Calls = dict[str, Callable[[], object]]


def runtime_rows(
    device: str, seconds: float, networks: Sequence[tuple[str, int]] = NETWORKS
) -> Iterator[tuple[str, Row]]:
    """Key and measurement of every row; bundles are made once, when their rows are asked for."""
    for backbone, side in networks:
        with tempfile.TemporaryDirectory() as folder:
            for backend in BACKENDS[device]:
                for precision in PRECISIONS[device]:
                    place = Path(folder) / precision
                    row = partial(_row, place, backbone, side, backend, precision, seconds)
                    yield f"runtime {backbone} {side} px {backend} {precision}", row


def _row(
    folder: Path, backbone: str, side: int, backend: Backend, precision: Precision, seconds: float
) -> dict[str, Any]:
    half, whole = folder / "half.prunion", folder / "whole.prunion"
    folder.mkdir(exist_ok=True)
    for path, density, own in ((half, 0.5, 0.75), (whole, 1.0, 1.0)):
        if not path.exists():
            options = ExportOptions(fp16=precision == "fp16")
            random_bundle(path, backbone, DOMAINS, density, own=own, size=side, options=options)
    before = free_gpu_bytes()
    try:
        model = load(half, backend=backend, precision=precision)
        calls = _calls(model, side)
        for call in calls.values():
            call()
    except PrunionError as exc:
        return {"skipped": str(exc)}
    taken = {"pruned, every domain": _taken(before)}
    if model.sessions.pins:  # an engine knows all domains: there are no networks of one to compare
        before = free_gpu_bytes()
        separate = load(whole, backend=backend, precision=precision)
        apart = _separate(separate, side)
        for call in apart.values():
            call()
        calls |= apart
        taken["separate, every domain"] = _taken(before)
    timings = time_interleaved(calls, seconds=seconds)
    return {
        "provider": model.sessions.provider(),
        "gpu_mib": taken,
        "ms": {name: round(t.p50_ms, 3) for name, t in timings.items()},
    }


def _calls(model: Model, side: int) -> Calls:
    """One domain (folded where the backend pins) and all of them in turn, at each batch size."""
    calls: Calls = {}
    for batch in BATCHES:
        image, rows = _batch(batch, side)
        calls[f"one domain, batch {batch}"] = partial(model.logits, image, np.zeros_like(rows))
        calls[f"mixed, batch {batch}"] = partial(model.logits, image, rows)
    return calls


def _separate(model: Model, side: int) -> Calls:
    """The same mixed batches through an unpruned network of each domain, one after another."""
    calls: Calls = {}
    for batch in BATCHES:
        image, rows = _batch(batch, side)
        parts = [(image[rows == d], rows[rows == d]) for d in range(min(batch, DOMAINS))]
        calls[f"separate, batch {batch}"] = partial(_one_after_another, model, parts)
    return calls


def _one_after_another(model: Model, parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    for image, rows in parts:
        model.logits(image, rows)


def _batch(count: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    image = np.random.default_rng(0).standard_normal((count, 3, side, side), np.float32)
    return image, np.arange(count) % DOMAINS


def _taken(before: int | None) -> int | None:
    """MiB less free on the GPU than `before`; None where that is not known."""
    after = free_gpu_bytes()
    return None if before is None or after is None else (before - after) >> 20
