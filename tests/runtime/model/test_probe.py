"""A backend that computes something else is found out before its first answer."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from prunion.runtime.backends import SessionOptions, make_mixed, make_session
from prunion.runtime.base import read_json, sha256_file, write_json
from prunion.runtime.errors import BackendError
from prunion.runtime.model import Model, load
from prunion.runtime.model import pool as pool_module
from prunion.runtime.model.probing import disagreement
from prunion.runtime.model.probing import probe as probe_module
from prunion.runtime.model.probing.probe import limit_of

pytest.importorskip("onnxruntime")


class Elsewhere:
    """A session of another library, which counts its runs and may be `wrong` in some way."""

    needs_tables = False
    batches = (1, 1 << 30)
    digest = ""

    def __init__(self, inner: Any, wrong: str = "", runs: list[int] | None = None) -> None:
        self.inner, self.wrong = inner, wrong
        self.runs = [] if runs is None else runs

    def run(self, outputs: Sequence[str], feeds: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
        image = feeds["image"]
        self.runs.append(len(image))
        if self.wrong == "colours":
            axis = 3 if image.dtype == np.uint8 else 1
            feeds = {**feeds, "image": np.ascontiguousarray(np.flip(image, axis))}
        if self.wrong == "silent":
            raise RuntimeError("no memory")
        logits = np.array(self.inner.run(outputs, feeds)[0])
        if self.wrong == "nan":
            logits[:, 0] = np.nan
        if self.wrong == "wide":
            logits = np.pad(logits, ((0, 0), (0, 1)))
        if self.wrong == "batch" and len(image) > 1:
            logits[1:] = logits[:1]
        return [logits]

    def get_providers(self) -> Sequence[str]:
        return ["CUDAExecutionProvider"]

    def check_tables(self, tables: Mapping[str, np.ndarray]) -> None: ...

    def note(self) -> str:
        return ""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PRUNION_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "verdicts"


def elsewhere(
    monkeypatch: pytest.MonkeyPatch,
    wrong: str = "",
    only: str = "mixed pinned",
    backend: str = "openvino",
) -> list[int]:
    """Sessions of `backend` are `Elsewhere`; returns the sizes of the batches they are asked."""
    runs: list[int] = []

    def changed(kind: str, make: Any) -> Any:
        def made(graph: Any, options: SessionOptions, needs: set[str]) -> Any:
            inner = make(graph, SessionOptions("cpu", 1), needs)
            if options.backend not in (backend, "auto" if backend == "cuda" else ""):
                return inner
            return Elsewhere(inner, wrong if kind in only else "", runs)

        return made

    monkeypatch.setattr(pool_module, "make_mixed", changed("mixed", make_mixed))
    monkeypatch.setattr(pool_module, "make_session", changed("pinned", make_session))
    return runs


def answers(model: Model, toy: Any, batch: np.ndarray, rows: Sequence[int]) -> None:
    expected = toy.reference(toy.make_tables(), batch, np.array(rows))
    np.testing.assert_allclose(model.logits(batch, rows), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("wrong", ["colours", "nan", "wide", "batch"])
@pytest.mark.parametrize("kind", ["mixed", "pinned"])
def test_a_backend_that_computes_something_else_is_refused(
    bundle_path: Path,
    batch: np.ndarray,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    wrong: str,
    kind: str,
) -> None:
    runs = elsewhere(monkeypatch, wrong, kind)
    rows = [1] * 6 if kind == "pinned" else [2, 0, 1, 1, 0, 2]
    message = {
        "colours": r"is [\d.e+]+ of the largest logit off, over 0\.001",
        "nan": "is not finite",
        "wide": r"has the shape \[4, \d\], not \[4, \d\]",
        # The other rows' domains have other classes.
        "batch": "is not finite" if kind == "mixed" else "of the largest logit off",
    }[wrong]
    for _ in range(2):
        with pytest.raises(BackendError, match=f"^openvino computes .*{message}.*backend cpu") as e:
            load(bundle_path, "openvino", threads=1).logits(batch, rows)
        assert "\n" not in str(e.value)
        seen = len(runs)
    assert len(runs) == seen > 0
    (file,) = cache.iterdir()
    assert read_json(file)["problem"], "remembered"


def test_a_verdict_is_asked_for_once(
    bundle_path: Path,
    toy: Any,
    batch: np.ndarray,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs = elsewhere(monkeypatch)
    for turn in range(3):
        with load(bundle_path, "openvino", threads=1) as model:
            answers(model, toy, batch, [1] * 6)
        assert runs == ([4, 1, 6] if turn == 0 else [6]), "a batch, one image, the request"
        runs.clear()
    (file,) = cache.iterdir()
    assert json.loads(file.read_text())["error"] < 1e-6
    for damage in ("", "{}", '{"format_version": 1, "problem": 3, "error": 0}', "[]", "\0"):
        file.write_text(damage)
        answers(load(bundle_path, "openvino", threads=1), toy, batch, [1] * 6)
        assert runs == [4, 1, 6], damage
        runs.clear()
    assert json.loads(file.read_text())["problem"] == "", "written anew"
    load(bundle_path, "openvino", threads=2).logits(batch, [1] * 6)
    assert runs == [4, 1, 6], "other threads, other code"


@pytest.mark.parametrize("kind", ["mixed", "pinned"])
def test_auto_goes_on_with_the_cpu_and_says_so(
    bundle_path: Path,
    toy: Any,
    batch: np.ndarray,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: str,
) -> None:
    ort = pytest.importorskip("onnxruntime")
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: both)
    elsewhere(monkeypatch, "colours", kind, "cuda")
    model = load(bundle_path, "auto", threads=1)
    with caplog.at_level(logging.WARNING, "prunion"):
        answers(model, toy, batch, [1] * 6)
        answers(model, toy, batch, [2, 0, 1, 1, 0, 2])
    (line,) = caplog.messages
    assert line.startswith("cuda computes something else") and "CPU answers instead" in line
    assert model.sessions.chosen().backend == "cpu"
    assert cache.is_dir()


def test_a_backend_that_does_not_answer_is_refused_and_asked_again(
    bundle_path: Path,
    toy: Any,
    batch: np.ndarray,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        elsewhere(patch, "silent")
        with pytest.raises(BackendError, match=r"openvino does not answer .*no memory"):
            load(bundle_path, "openvino", threads=1).logits(batch, [1] * 6)
    elsewhere(monkeypatch)
    answers(load(bundle_path, "openvino", threads=1), toy, batch, [1] * 6)


@pytest.mark.parametrize("lack", ["memory", "onnxruntime"])
def test_without_a_reference_nothing_is_compared_and_that_is_said(
    bundle_path: Path,
    batch: np.ndarray,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    lack: str,
) -> None:
    elsewhere(monkeypatch)
    if lack == "memory":
        monkeypatch.setattr(probe_module, "available_bytes", lambda: 1 << 10)
    else:
        monkeypatch.setattr(
            probe_module, "make_ort_session", lambda *_: (_ for _ in ()).throw(MemoryError())
        )
    with caplog.at_level(logging.WARNING, "prunion"):
        load(bundle_path, "openvino", threads=1).logits(batch, [1] * 6)
    (line,) = caplog.messages
    assert line.startswith("openvino's answers are not checked: ")
    assert not cache.exists(), "the next time it is tried again"


def test_the_cpu_is_not_asked(bundle_path: Path, batch: np.ndarray, cache: Path) -> None:
    model = load(bundle_path, "cpu", threads=1)
    model.logits(batch, [1] * 6)
    model.sessions.mixed()
    assert not cache.exists()


def test_openvino_is_asked(bundle_path: Path, toy: Any, batch: np.ndarray, cache: Path) -> None:
    pytest.importorskip("openvino", reason="pip install 'prunion[openvino]'")
    model = load(bundle_path, "openvino", threads=1)
    answers(model, toy, batch, [1] * 6)
    model.sessions.mixed()
    verdicts = [read_json(file) for file in cache.iterdir()]
    assert len(verdicts) == 2
    assert all(v["error"] < 1e-5 and not v["problem"] for v in verdicts)


def test_the_fault_that_openvino_had_is_found(
    own_bundle: Path, toy: Any, batch: np.ndarray, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the guard against it: channels in another order in front of a convolution."""
    pytest.importorskip("openvino", reason="pip install 'prunion[openvino]'")
    path, node = own_bundle / "model.onnx", onnx.helper.make_node
    model, random = onnx.load(path), np.random.default_rng(0)
    nodes = list(model.graph.node)
    place = next(i for i, n in enumerate(nodes) if n.op_type == "GlobalAveragePool")
    nodes[place].input[0] = "mixed_up"
    nodes[place:place] = [
        node("Gather", ["active", "order"], ["gathered"], axis=1),
        node("Conv", ["gathered", "next.weight"], ["mixed_up"]),
    ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    values = {
        "order": np.arange(8).reshape(2, 4).T.ravel(),
        "next.weight": random.standard_normal((8, 8, 1, 1), dtype=np.float32),
    }
    tensors = [onnx.numpy_helper.from_array(value, name) for name, value in values.items()]
    model.graph.initializer.extend(tensors)
    onnx.save(model, path)
    manifest = read_json(own_bundle / "manifest.json")
    manifest["files"]["model.onnx"] = sha256_file(path)
    write_json(own_bundle / "manifest.json", manifest)
    expected = load(own_bundle, "cpu", threads=1).logits(batch, "signs")
    with monkeypatch.context() as patch:
        patch.setattr("prunion.runtime.backends.openvino._keep_gathers", lambda _: None)
        for rows in ([1] * 6, [0, 1, 2] * 2):
            with pytest.raises(BackendError, match=r"answer is [\d.]+ of the largest logit off"):
                load(own_bundle, "openvino", threads=1, slicing=False).logits(batch, rows)
    for file in cache.iterdir():
        file.unlink()
    got = load(own_bundle, "openvino", threads=1, slicing=False).logits(batch, "signs")
    np.testing.assert_allclose(got[:, :5], expected[:, :5], rtol=1e-4, atol=1e-5)


def test_batches_are_what_the_session_takes() -> None:
    def sizes(count: int, takes: tuple[int, int]) -> list[int]:
        return [len(part) for part in probe_module._batches(count, takes)]

    assert sizes(6, (1, 100)) == [4, 2, 1]
    assert sizes(6, (8, 8)) == [8, 8], "one size alone: rows are repeated"
    assert sizes(6, (2, 3)) == [3, 3, 2]
    assert sizes(4, (1, 1)) == [1, 1, 1, 1, 1]


def test_limits_follow_the_arithmetic() -> None:
    assert limit_of("openvino", "fp32") == limit_of("openvino", "fp32-uint8") == 1e-3
    assert limit_of("cuda", "fp32") == limit_of("openvino", "fp16") == 3e-2
    assert limit_of("tensorrt", "int8") == 0.5
    assert limit_of("tensorrt", "int8-uint8", 0.05) == pytest.approx(0.2)
    assert limit_of("tensorrt", "int8", 0.4) == 0.5


def test_what_disagrees() -> None:
    reference = np.array([[1.0, -4.0, -np.inf]])
    assert disagreement(reference, np.array([[1.0, -3.0, -3.4e38]])) == 0.25
    for got in ([1.0, -4.0, 0.0], [1.0, np.nan, -np.inf], [1.0, -np.inf, -np.inf]):
        assert disagreement(reference, np.array([got])) == np.inf
    assert disagreement(reference, reference[:, :2]) == np.inf
