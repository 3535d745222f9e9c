"""Checking and writing a model without copies of its weights: the same verdict, the same model."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from prunion.exporter.graph import save_graph
from prunion.exporter.graph.opset import check_structure


def model(kind: str = "Conv") -> onnx.ModelProto:
    """`kind` over `image` with a weight far larger than what is looked at."""
    weight = np.random.default_rng(0).standard_normal((64, 3, 3, 3), dtype=np.float32)
    nodes = [
        helper.make_node(kind, ["image", "w"], ["x"]),
        helper.make_node("Reshape", ["x", "shape"], ["out"]),
    ]
    values = [
        numpy_helper.from_array(weight, "w"),
        numpy_helper.from_array(np.array([0, -1]), "shape"),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 8, 8])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", 64 * 36])
    made = helper.make_model(helper.make_graph(nodes, "g", [image], [out], values))
    made.opset_import[0].version = 20
    helper.set_model_props(made, {"a": "b" * 300})
    made.producer_name = "somebody"
    return made


def test_what_is_written_is_the_model(tmp_path: Path) -> None:
    made = model()
    save_graph(made, tmp_path / "model.onnx")
    assert onnx.load(tmp_path / "model.onnx") == made
    onnx.save(made, tmp_path / "onnx.onnx")
    sizes = {file.stat().st_size for file in tmp_path.iterdir()}
    assert len(sizes) == 1
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)


def test_a_model_without_weights_is_written_too(tmp_path: Path) -> None:
    made = model()
    del made.graph.initializer[:]
    save_graph(made, tmp_path / "model.onnx")
    assert onnx.load(tmp_path / "model.onnx") == made


def test_the_check_refuses_what_onnx_refuses() -> None:
    check_structure(model())
    misshapen = model()
    misshapen.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 7
    cyclic = model()
    cyclic.graph.node[0].input[0] = "out"
    for wrong in (model("Convolution"), misshapen, cyclic):
        for check in (partial(onnx.checker.check_model, full_check=True), check_structure):
            with pytest.raises(Exception, match=r"Convolution|ShapeInference|sorted"):
                check(wrong)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's peak memory")
def test_checking_and_writing_keep_no_copy_of_the_weights(tmp_path: Path) -> None:
    code = (
        "import resource, sys, numpy as np, onnx\n"
        "from onnx import numpy_helper\n"
        "from pathlib import Path\n"
        "from tests.exporter.graph.test_writer import model\n"
        "from prunion.exporter.graph.opset import check_structure\n"
        "from prunion.exporter.graph.writer import save_graph\n"
        "made = model()\n"
        "check_structure(made); save_graph(made, Path(sys.argv[1]))\n"
        "for i in range(8):\n"
        "    big = np.ones((1 << 20,), np.float32)\n"
        "    made.graph.initializer.append(numpy_helper.from_array(big, f'b{i}'))\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10\n"
        "before = peak()\n"
        "check_structure(made); save_graph(made, Path(sys.argv[1]))\n"
        "print(peak() - before)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x.onnx")],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
    )
    assert int(done.stdout) < 20, "32 MiB of weights, written 4 MiB at a time"
