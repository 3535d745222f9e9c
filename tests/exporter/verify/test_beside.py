"""Every image is answered for itself, in batches of whatever size, and INT8 as its export noted."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

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
    """Steps of activations that are too small cost much, and less than INT8 may cost at all."""
    copy = Path(shutil.copytree(eight, tmp_path / "copy.prunion"))
    model = onnx.load(copy / "model.int8.onnx")
    for tensor in model.graph.initializer:
        if tensor.name.endswith("_scale") and not tensor.dims:
            value = numpy_helper.to_array(tensor) * np.float32(0.6)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    onnx.save(model, copy / "model.int8.onnx")
    rehash(copy)
    compared = compare_graphs(open_bundle(copy), ["fp32", "int8"], None).compared
    wrong = [x for x in compared if not x.passed]
    assert {(x.graph, x.against) for x in wrong} == {("int8", "the fp32 graph")}
    assert max(x.error for x in wrong) < 0.5
