"""Every image is answered for itself, in batches of whatever size, and INT8 as its export noted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx
import pytest

from prunion.exporter.verify.compare import compare_graphs
from prunion.runtime.bundle import open_bundle
from tests.exporter.verify.test_report import rehash
from tests.support.mixing import KINDS, mix


@pytest.mark.parametrize("kind", KINDS)
def test_images_that_are_mixed_before_the_first_norm_are_found(copy: Path, kind: str) -> None:
    """Both sides were of the same images in the same twos, with another domain's numbers."""
    model = onnx.load(copy / "model.onnx")
    mix(model, kind)
    onnx.save(model, copy / "model.onnx")
    rehash(copy)
    found = compare_graphs(open_bundle(copy), ["fp32"], None)
    assert not found.problems
    assert {x.against for x in found.compared if not x.passed} == {"the same images alone"}


def test_int8_is_held_to_what_its_export_noted(eight: Path, tmp_path: Path) -> None:
    """What an INT8 graph's steps cost now, less than INT8 may at all, may not have come since."""
    copy = Path(shutil.copytree(eight, tmp_path / "copy.prunion"))
    manifest = json.loads((copy / "manifest.json").read_text())
    errors = manifest["verified"]["variants"]["int8"]["max_relative_error"]
    errors.update(dict.fromkeys(errors, 0.05))
    (copy / "manifest.json").write_text(json.dumps(manifest))
    for bundle, found in ((eight, set()), (copy, {("int8", "the fp32 graph")})):
        compared = compare_graphs(open_bundle(bundle), ["fp32", "int8"], None).compared
        wrong = [x for x in compared if not x.passed]
        assert {(x.graph, x.against) for x in wrong} == found
        assert all(x.error < 0.5 for x in wrong)
