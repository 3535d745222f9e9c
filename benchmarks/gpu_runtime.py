"""The exported bundle on a GPU through the runtime: each backend that is there, mixed and single.

python -m prunion.benchmarks.gpu runtime -o gpu.jsonl
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from prunion.benchmarks.random_bundle import random_bundle
from prunion.runtime import load
from prunion.runtime.errors import PrunionError
from prunion.runtime.timing import time_interleaved

__all__ = ["runtime_rows"]

CASES = (("resnet50", 224), ("mobilenet_v2", 96))
BACKENDS = {"cuda": ("cuda", "tensorrt", "tensorrt-rtx"), "cpu": ("cpu",)}
BATCHES = (1, 8, 32)
DOMAINS = 4

Row = Callable[[], dict[str, Any]]


def runtime_rows(device: str, seconds: float) -> Iterator[tuple[str, Row]]:
    """Key and measurement of every row; bundles are made once, when their rows are asked for."""
    for backbone, side in CASES:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.prunion"
            for backend in BACKENDS[device]:
                row = partial(_row, path, backbone, side, backend, seconds)
                yield f"runtime {backbone} {side} px {backend}", row


def _row(path: Path, backbone: str, side: int, backend: str, seconds: float) -> dict[str, Any]:
    if not path.exists():
        random_bundle(path, backbone, DOMAINS, size=side)
    try:
        model = load(path, backend=backend)
        model.logits(np.zeros((1, 3, side, side), np.float32), [0])
    except PrunionError as exc:
        return {"skipped": str(exc)}
    cases = {}
    for batch in BATCHES:
        image = np.random.default_rng(0).standard_normal((batch, 3, side, side), np.float32)
        one, mixed = np.zeros(batch, np.int64), np.arange(batch) % DOMAINS
        cases[f"one domain, batch {batch}"] = partial(model.logits, image, one)
        cases[f"mixed, batch {batch}"] = partial(model.logits, image, mixed)
    timings = time_interleaved(cases, seconds=seconds)
    return {"ms": {name: round(t.p50_ms, 3) for name, t in timings.items()}}
