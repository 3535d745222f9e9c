"""The graph that everything is measured against computes the same thing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from prunion.runtime.backends import make_ort_session, run
from prunion.runtime.bundle import open_bundle
from prunion.runtime.graph import pin_pack

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("torchvision")


def test_folding_by_hand_changes_no_answer(tmp_path: Path) -> None:
    from prunion.benchmarks.cost.folded import fold_by_hand
    from prunion.benchmarks.random_bundle import random_bundle

    path = random_bundle(tmp_path / "x.prunion", "resnet18", 2, size=32, classes=3)
    bundle = open_bundle(path)
    pack = bundle.pack("d1")
    pinned = pin_pack(bundle.graph(), pack)
    folded = fold_by_hand(pinned)
    kinds = {node.op_type for node in onnx.load_from_string(folded).graph.node}
    assert not kinds & {"Mul", "Split"}
    image = {"image": np.random.default_rng(0).standard_normal((2, 3, 32, 32), dtype=np.float32)}
    expected, got = (run(make_ort_session(graph), image) for graph in (pinned, folded))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_every_channel_of_the_union_has_a_user(tmp_path: Path) -> None:
    from prunion.benchmarks.random_bundle import random_bundle

    bundle = open_bundle(random_bundle(tmp_path / "x.prunion", "resnet18", 3, size=32, classes=3))
    switches = np.stack([bundle.pack(name).switches for name in bundle.domains])
    assert switches.any(axis=0).all()
    assert {pair[1] for pair in bundle.manifest.widths.values()} == {32, 64, 128, 256}
    assert all(0.7 < row.mean() < 0.85 for row in switches)
