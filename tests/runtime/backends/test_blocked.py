"""Mixed batches in the blocked layout: cut into parts, fed anew as domains come, given up if need
be."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from prunion.runtime.backends import BlockedSession, SessionOptions, blocked_parts, make_ort_session
from prunion.runtime.backends import blocked as module
from prunion.runtime.backends.onnxruntime import OrtSession
from prunion.runtime.errors import UnsupportedGraphError

pytest.importorskip("onnxruntime")

OPTIONS = SessionOptions("cpu", threads=1)


@pytest.fixture
def graph(bundle_path: Path) -> bytes:
    return (bundle_path / "model.onnx").read_bytes()


@pytest.fixture
def feeds(toy: ModuleType) -> dict[str, np.ndarray]:
    tables = toy.make_tables()
    shape = (13, 3, toy.HEIGHT, toy.SIDE_WIDTH)
    names = ("bank", "head_weight", "head_bias")
    return {
        "image": np.random.default_rng(1).standard_normal(shape, dtype=np.float32),
        "domain": np.arange(13) % 3,
        **{name: getattr(tables, name) for name in names},
    }


def plain(graph: bytes) -> OrtSession:
    return make_ort_session(graph, OPTIONS)


def agrees(session: BlockedSession, graph: bytes, feeds: dict[str, np.ndarray]) -> None:
    (expected,) = plain(graph).run(["logits"], feeds)
    np.testing.assert_allclose(session.run(["logits"], feeds)[0], expected, rtol=1e-4, atol=1e-5)


def test_a_batch_is_cut_into_the_largest_parts() -> None:
    assert blocked_parts(1) == [1]
    assert blocked_parts(7) == [4, 2, 1]
    assert blocked_parts(21) == [8, 8, 4, 1]


def test_domains_that_come_are_answered(graph: bytes, feeds: dict[str, np.ndarray]) -> None:
    session = BlockedSession(graph, OPTIONS, lambda: plain(graph))
    agrees(session, graph, feeds)
    tables = {k: x for k, x in feeds.items() if k not in ("image", "domain")}
    taller = {k: np.concatenate([x, x[:1]]) for k, x in tables.items()}
    taller["bank"][3] *= 2
    agrees(session, graph, {**feeds, **taller, "domain": feeds["domain"] + 1})
    # More classes than before: the answers are wider.
    wide = np.pad(taller["head_weight"], ((0, 0), (0, 0), (0, 2)))
    bias = np.pad(taller["head_bias"], ((0, 0), (0, 2)), constant_values=-np.inf)
    agrees(session, graph, {**feeds, **taller, "head_weight": wide, "head_bias": bias})
    assert session.note() == ""


def test_threads_do_not_share_what_is_filled(graph: bytes, feeds: dict[str, np.ndarray]) -> None:
    session = BlockedSession(graph, OPTIONS, lambda: plain(graph))
    reference, orders = plain(graph), np.random.default_rng(0).integers(0, 3, (32, 13))
    expected = [reference.run(["logits"], {**feeds, "domain": rows})[0] for rows in orders]
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(session.run, ["logits"], {**feeds, "domain": x}) for x in orders]
        for future, right in zip(asked, expected, strict=True):
            np.testing.assert_allclose(future.result()[0], right, rtol=1e-4, atol=1e-5)


def test_an_answer_is_the_callers_own(graph: bytes, feeds: dict[str, np.ndarray]) -> None:
    session = BlockedSession(graph, OPTIONS, lambda: plain(graph))
    (first,) = session.run(["logits"], feeds)
    kept = first.copy()
    session.run(["logits"], {**feeds, "image": feeds["image"] * 2})
    np.testing.assert_array_equal(first, kept)


def test_weights_lie_at_cache_lines(graph: bytes) -> None:
    session = BlockedSession(graph, OPTIONS, lambda: plain(graph))
    assert session._weights
    assert all(array.ctypes.data % 64 == 0 for array in session._weights.values())


def test_what_fails_is_given_up_for_the_plain_graph(
    graph: bytes, feeds: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    session, opened = BlockedSession(graph, OPTIONS, lambda: opened.append(1) or plain(graph)), []

    def fail(*_: object) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(module._Bound, "run", fail)
    agrees(session, graph, feeds)
    agrees(session, graph, feeds)
    assert session.note() == "the blocked layout was given up: no such kernel"
    assert opened == [1], "and stays so"


def test_an_onnxruntime_without_the_layout_is_refused(
    graph: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown() -> bytes:
        import onnx

        model = onnx.load_from_string(real())
        model.graph.node[0].op_type = "NoSuchOperator"
        return bytes(model.SerializeToString())

    real = module.layout_probe
    monkeypatch.setattr(module, "layout_probe", unknown)
    with pytest.raises(UnsupportedGraphError, match="no blocked layout"):
        BlockedSession(graph, OPTIONS, lambda: plain(graph))
