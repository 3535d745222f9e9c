"""A graph that mixes the images of a batch answers nobody."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from prunion.runtime.base import sha256_file
from prunion.runtime.errors import BundleError
from prunion.runtime.model import load
from prunion.runtime.model.probing import beside as beside_module
from tests.support.mixing import KINDS, mix

pytest.importorskip("onnxruntime")


@pytest.mark.parametrize("rows", [[1] * 6, [2, 0, 1, 1, 0, 2]])
@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_that_mixes_images_is_refused(
    own_bundle: Path, batch: np.ndarray, kind: str, rows: list[int]
) -> None:
    """Whoever made it made the hashes too; a shift by twelve is idle in batches of up to twelve."""
    graph, manifest = own_bundle / "model.onnx", own_bundle / "manifest.json"
    model = onnx.load(graph)
    mix(model, kind)
    onnx.save(model, graph)
    value = json.loads(manifest.read_text())
    value["files"]["model.onnx"] = sha256_file(graph)
    manifest.write_text(json.dumps(value))
    for _ in range(2):  # the second time by what is remembered
        with pytest.raises(BundleError, match=r"model\.onnx: images of one batch are mixed"):
            load(own_bundle, "cpu", threads=1).logits(batch, rows)


def test_what_was_found_is_remembered(
    bundle_path: Path,
    batch: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PRUNION_CACHE", str(tmp_path / "cache"))
    asked = list[int]()
    true = beside_module._error

    def counted(*args: object, **named: bool) -> float:
        asked.append(1)
        return true(*args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(beside_module, "_error", counted)
    for _ in range(2):
        model = load(bundle_path, "cpu", threads=1)
        model.logits(batch, [2, 0, 1, 1, 0, 2])
        model.logits(batch, [1] * 6)
        assert len(asked) == 2, "a mixed graph, and one of a domain alone"
