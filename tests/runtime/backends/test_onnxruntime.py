"""Sessions on a GPU are run by I/O binding; ONNX Runtime's CPU binds the same way."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from prunion.runtime.backends import Session, SessionOptions, make_ort_session
from prunion.runtime.backends.onnxruntime import BoundSession, OrtSession, mixed_session
from prunion.runtime.backends.openvino import OpenVinoSession
from prunion.runtime.backends.tensorrt_provider import CompiledSession
from prunion.runtime.model import Model, load
from prunion.runtime.tensorrt import TensorRtSession

ort = pytest.importorskip("onnxruntime")


def bound(bundle_path: Path) -> Model:
    model = load(bundle_path, "cpu", threads=1, memory_limit=0)
    model.sessions._mixed = BoundSession(model.sessions.mixed().raw, "cpu")
    return model


def test_answers_are_those_of_the_session(bundle_path: Path, batch: np.ndarray) -> None:
    plain, model = load(bundle_path, "cpu", threads=1, memory_limit=0), bound(bundle_path)
    rows = np.array([2, 0, 1, 1, 0, 2])
    np.testing.assert_array_equal(model.logits(batch, rows), plain.logits(batch, rows))
    assert model.sessions.provider() == "CPUExecutionProvider"


def test_tables_are_copied_when_domains_change_only(bundle_path: Path, batch: np.ndarray) -> None:
    model = bound(bundle_path)
    before = model.logits(batch, "signs")
    model.add_domain(dataclasses.replace(model.bundle.pack("signs"), name="more"))
    np.testing.assert_array_equal(model.logits(batch, "more"), before)
    session, feeds = model.sessions.mixed(), model._tables.feeds
    first = session.table("bank", feeds["bank"])
    model.logits(batch, "more")
    assert session.table("bank", feeds["bank"]) is first
    model.remove_domain("more")
    np.testing.assert_array_equal(model.logits(batch, "signs"), before)
    assert session.table("bank", model._tables.feeds["bank"]) is not first


@pytest.mark.gpu
@pytest.mark.skipif(
    "CUDAExecutionProvider" not in ort.get_available_providers(), reason="needs prunion[ort-gpu]"
)
def test_cuda_answers_like_the_cpu(bundle_path: Path, batch: np.ndarray) -> None:
    cpu, cuda = load(bundle_path, "cpu"), load(bundle_path, "cuda")
    for rows in ([2, 0, 1, 1, 0, 2], [1] * 6):
        got = cuda.logits(batch, rows)
        np.testing.assert_allclose(got, cpu.logits(batch, rows), rtol=2e-3, atol=2e-3)


def test_a_session_is_quiet_itself_and_leaves_the_process_alone(bundle_path: Path) -> None:
    session = make_ort_session(bundle_path / "model.onnx", SessionOptions("cpu", 1))
    assert session.raw.get_session_options().log_severity_level == 4, "what fails is raised"
    assert ort.SessionOptions().log_severity_level == -1, "of the process: whatever the user set"


def test_sessions_of_every_library_are_one_protocol() -> None:
    wanted = [name for name in vars(Session) if not name.startswith("_")]
    assert len(wanted) == 7
    for kind in (OrtSession, BoundSession, OpenVinoSession, CompiledSession, TensorRtSession):
        # An engine's digest comes with its bytes.
        lacking = [name for name in wanted if not hasattr(kind, name)]
        assert lacking in ([], ["digest"])


@pytest.mark.parametrize(("asked", "threads"), [(None, 3), (5, 5)])
def test_a_containers_quota_decides_the_threads_unless_told(
    bundle_path: Path, asked: int | None, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prunion.runtime.backends.onnxruntime.default_threads", lambda: 3)
    session = mixed_session(bundle_path / "model.onnx", SessionOptions("cpu", asked))
    assert session.raw.get_session_options().intra_op_num_threads == threads
