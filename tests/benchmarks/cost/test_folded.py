"""The graph that everything is measured against computes the same thing."""

from __future__ import annotations

import numpy as np
import pytest

from prunion.runtime.backends import make_ort_session, run
from prunion.runtime.bundle import Bundle, open_bundle
from prunion.runtime.graph import pin_pack

pytestmark = pytest.mark.thorough

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("torchvision")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    from prunion.benchmarks.random_bundle import random_checkpoint
    from prunion.exporter.bundle import export_bundle

    path, size = tmp_path_factory.mktemp("folded") / "x", {"size": 32, "classes": 3}
    export_bundle(random_checkpoint(path, "resnet18", 3, 0.5, 16, **size, cut="layer2"), path / "p")
    return open_bundle(path / "p")


def test_folding_by_hand_changes_no_answer(bundle: Bundle) -> None:
    from prunion.benchmarks.cost.folded import fold_by_hand

    pack = bundle.pack("d1")
    pinned = pin_pack(bundle.graph(), pack)
    folded = fold_by_hand(pinned)
    kinds = {node.op_type for node in onnx.load_from_string(folded).graph.node}
    assert not kinds & {"Mul", "Split"}
    image = {"image": np.random.default_rng(0).standard_normal((2, 3, 32, 32), dtype=np.float32)}
    expected, got = (run(make_ort_session(graph), image) for graph in (pinned, folded))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_every_channel_of_the_union_has_a_user(bundle: Bundle) -> None:
    switches = np.stack([bundle.pack(name).switches for name in bundle.domains])
    assert switches.any(axis=0).all()
    assert {pair[1] for pair in bundle.manifest.widths.values()} == {32, 64}
    assert all(0.7 < row.mean() < 0.85 for row in switches)
