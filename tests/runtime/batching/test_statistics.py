"""What a batcher counts: every run once for each of its requests, and only those that answered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prunion.runtime.batching import Batcher, BatchOptions, Job
from prunion.runtime.batching.queue import Piece
from prunion.runtime.model import load

pytest.importorskip("onnxruntime")


def test_two_pieces_of_one_request_in_a_batch_are_one_run(
    bundle_path: Path, batch: np.ndarray
) -> None:
    spent: list[int] = []
    with load(bundle_path, backend="cpu", threads=1) as model:
        batcher = Batcher(model, BatchOptions(max_batch=4, delay=0.0))
        recorded = batcher.statistics.record_batch

        def record(names: Any, spent_ns: int) -> int:
            spent.append(spent_ns)
            return recorded(names, spent_ns)

        batcher.statistics.record_batch = record  # type: ignore[method-assign]
        domain = model.snapshot.domains[0]
        job = Job(batch[:4], (domain,) * 4, model.max_classes)
        job.missing = 4
        batcher._run([Piece(job, 0, 2), Piece(job, 2, 4)])
        assert spent == [job.infer_ns]
        assert batcher.statistics.total.execution_count == 1
        batcher.close()


def test_what_failed_is_no_inference(bundle_path: Path, batch: np.ndarray) -> None:
    class Broken:
        def __init__(self, model: Any) -> None:
            self.model = model

        def answer(self, array: np.ndarray, domains: Any) -> np.ndarray:
            raise RuntimeError("no memory")

        def __getattr__(self, name: str) -> Any:
            return getattr(self.model, name)

    with load(bundle_path, backend="cpu", threads=1) as model:
        batcher = Batcher(Broken(model), BatchOptions(max_batch=4, delay=0.0))  # type: ignore[arg-type]
        job = Job(batch[:1], (model.snapshot.domains[0],), model.max_classes)
        job.missing = 1
        batcher._run([Piece(job, 0, 1)])
        assert "no memory" in str(job.error)
        counted = batcher.statistics.total
        assert counted.inference_count == counted.execution_count == 0
        batcher.close()
