"""What a batcher counts: every run once for each of its requests, and only those that answered."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prunion.runtime.batching import (
    MOST_DOMAINS,
    OTHER,
    Batcher,
    BatchOptions,
    Job,
    RequestTimes,
    Statistics,
)
from prunion.runtime.batching.queue import Piece
from prunion.runtime.model import load
from tests.support.waiting import LONG

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


def full() -> Statistics:
    """As many domains as are counted singly, each asked once."""
    found = Statistics()
    for n in range(MOST_DOMAINS):
        found.record_batch([f"d{n}"], 1)
    return found


def test_who_reads_counts_takes_no_place() -> None:
    found = Statistics()
    for n in range(MOST_DOMAINS + 1):
        own = found.of(f"d{n}")
        assert own is not None and own.inference_count == 0
    assert not found.domains


def test_one_of_many_domains_is_not_told_the_counts_of_others() -> None:
    found = full()
    own = found.of("late")
    assert own is not None and own.inference_count == 0, "nobody is among the others yet"
    found.record_batch(["later"] * 5, 1)
    assert found.of("late") is None and found.of("later") is None
    first = found.of("d0")
    assert first is not None and first.inference_count == 1
    assert found.domains[OTHER].inference_count == 5


def test_domains_that_are_counted_together_are_one_in_a_run_and_in_a_request() -> None:
    found = full()
    names = ["d0", "w", "x", "y", "y", "z"]
    assert found.record_batch(names, 7) == 5, "it had five domains all the same"
    found.record_success(names, RequestTimes(total_ns=9))
    others = found.domains[OTHER]
    assert (others.execution_count, others.inference_count) == (1, 5)
    assert {rows: x.count for rows, x in others.batches.items()} == {5: 1}
    assert (others.success.count, others.success.ns) == (1, 9)
    assert found.domains["d0"].success.count == found.total.success.count == 1
    assert len(found.domains) == MOST_DOMAINS + 1


def test_a_domain_that_has_the_name_of_all_others() -> None:
    found = Statistics()
    found.record_batch([OTHER], 1)
    assert found.of(OTHER) is None, "from now on others may be counted there"
    for n in range(MOST_DOMAINS):
        found.record_batch([f"d{n}"], 1)
    assert found.of(f"d{MOST_DOMAINS - 1}") is not None and found.of("late") is None


def test_a_copy_is_of_one_moment_and_of_nobody_else() -> None:
    found = Statistics()
    found.record_batch(["a", "a", "b"], 5)
    with found._lock:
        reader = threading.Thread(target=found.copied)
        reader.start()
        reader.join(0.05)  # short: it is not to end
        assert reader.is_alive(), "whoever writes is waited for"
    reader.join(LONG)
    copy = found.copied()
    found.record_batch(["a"], 5)
    found.record_failure(3, "queue")
    found.record_pack(2)
    assert copy.total.batches.keys() == {3} and copy.domains["a"].batches.keys() == {2}
    assert copy.mixes == {2: 1} and len(copy.recent) == 1
    assert not copy.refused and not copy.pack_reads.count and not copy.total.fail.count


def test_what_is_told_is_read_from_a_copy(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader of the counts themselves met dicts that changed their size under it."""
    pytest.importorskip("starlette", reason="needs prunion[serve]")
    from prunion.runtime.serve.metrics import metrics_text
    from prunion.runtime.serve.models import Repository, Service

    with load(bundle_path, backend="cpu", threads=1) as model:
        service = Service(model)
        service.statistics.record_batch(["flowers"], 5)
        copy = service.statistics.copied()
        monkeypatch.setattr(service.statistics, "copied", lambda: copy)
        for name in ("total", "domains", "mixes", "refused", "recent"):
            monkeypatch.delattr(service.statistics, name)
        assert "nv_inference_count" in metrics_text(service)
        assert Repository(service).statistics()["model_stats"][0]["inference_count"] == 1
        monkeypatch.undo()
        service.close()
