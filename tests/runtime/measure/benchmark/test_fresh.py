"""What has been timed is gone before fresh processes are measured: they need the memory."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from weakref import WeakSet

import pytest

from prunion.runtime.measure import bench
from prunion.runtime.measure.benchmark import measure, together

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Only what nothing refers to any more is gone, without waiting for Python's collector."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("uncollected")
def test_no_session_is_left_when_a_fresh_process_starts(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them were, kept by the calls that were timed and by the pools that made them."""
    made, alive, left = [], WeakSet(), []
    start = onnxruntime.InferenceSession.__init__

    def started(self: object, *args: object, **options: object) -> None:
        start(self, *args, **options)
        made.append(1)
        alive.add(self)

    def measured(_: object, name: str, *__: object) -> str:
        left.append((name, len(alive)))
        return f"{name}: not measured"

    monkeypatch.setattr(onnxruntime.InferenceSession, "__init__", started)
    monkeypatch.setattr(measure, "measure_fresh", measured)
    monkeypatch.setattr(together, "WARM_UP_S", 0.01)
    rival = str(bundle_path / "model.onnx")
    report = bench(
        bundle_path, batches=(1,), seconds=0.01, threads=1, against=["specialised", rival]
    )
    names = ["mixed", "blocked", "pinned:flowers", "specialised:flowers", rival]
    assert len(made) > len(names), "a sliced session is held to a mixed one"
    assert left == [(name, 0) for name in names]
    assert [x.session for x in report.rows] == names
    assert report.notes[-1] == f"{rival}: not measured"
