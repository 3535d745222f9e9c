"""OpenVINO's sessions come and go without taking the process with them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

pytest.importorskip("openvino", reason="pip install 'prunion[openvino]'")

from prunion.runtime.backends.openvino import OpenVinoSession

STOPPED = """
import signal, sys
from prunion.runtime import load

models = []
for turn in range(3):
    models.append(load(sys.argv[1], "openvino", threads=1))
    models[-1].sessions.mixed()
    if turn:
        models.pop(0)
models.clear()
signal.signal(signal.SIGTERM, lambda *_: print("stopped", flush=True))
signal.raise_signal(signal.SIGTERM)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM handlers")
def test_a_signal_is_handled_after_sessions_left(bundle_path: Path) -> None:
    """Each of OpenVINO's cores sets a stack for signals, and puts another's back when it goes."""
    done = subprocess.run(
        [sys.executable, "-c", STOPPED, str(bundle_path)], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "stopped\n"), done.stderr


@pytest.mark.parametrize(
    "between",
    [[], ["Relu"], ["Conv"], ["PRelu"], ["Pad"]],
    ids=lambda kinds: kinds[0] if kinds else "nothing",
)
def test_a_gather_of_all_channels_is_computed(between: list[str]) -> None:
    """OpenVINO moves it into the next convolution's weights, by the wrong order."""
    random = np.random.default_rng(0)
    channels, order = 12, np.arange(12).reshape(3, 4).T.ravel()
    wide = 16 if between == ["Pad"] else channels
    values = {
        "order": order,
        "weight": random.standard_normal((5, wide, 1, 1), dtype=np.float32),
        "Conv": random.standard_normal((channels, 1, 3, 3), dtype=np.float32),
        "PRelu": random.standard_normal((channels, 1, 1), dtype=np.float32),
        "Pad": np.array([0, 2, 0, 0, 0, 2, 0, 0]),
    }
    node, last = onnx.helper.make_node, "gathered"
    nodes = [node("Gather", ["image", "order"], [last], axis=1)]
    for kind in between:
        group = {"group": channels} if kind == "Conv" else {}
        inputs = [last, *([kind] if kind in values else [])]
        nodes.append(node(kind, inputs, [last := kind.lower()], **group))
    nodes.append(node("Conv", [last, "weight"], ["out"]))
    used = {name for n in nodes for name in n.input}
    value_info, kind = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes,
        "shuffled",
        [value_info("image", kind, ["N", channels, 6, 6])],
        [value_info("out", kind, None)],
        [onnx.numpy_helper.from_array(v, name) for name, v in values.items() if name in used],
    )
    opset = [onnx.helper.make_opsetid("", 20)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=9)
    image = random.standard_normal((2, channels, 6, 6), dtype=np.float32)
    expected = ReferenceEvaluator(model).run(None, {"image": image})[0]
    got = OpenVinoSession(model.SerializeToString(), 1).run(["out"], {"image": image})[0]
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("pointwise", [1, 2], ids=["one convolution", "two in a row"])
def test_a_stride_below_a_banks_rows_compiles(pointwise: int) -> None:
    """OpenVINO moves it up to what the product reads, which may be one part of many."""
    random = np.random.default_rng(0)
    node, info, kind = onnx.helper.make_node, onnx.helper.make_tensor_value_info, 1
    values = {
        "last": np.array([2, 3]),
        "sizes": np.array([8, 8]),
        "w0": random.standard_normal((8, 8, 1, 1), dtype=np.float32),
        "w1": random.standard_normal((8, 8, 1, 1), dtype=np.float32),
    }
    nodes = [
        node("Unsqueeze", ["rows", "last"], ["tall"]),
        node("Split", ["tall", "sizes"], ["scale", "shift"], axis=1),
        node("Mul", ["image", "scale"], ["product"]),
        node("Add", ["product", "shift"], ["sum"]),
        node("Relu", ["sum"], ["c0"]),
    ]
    for number in range(pointwise):
        strides = [2, 2] if number == pointwise - 1 else [1, 1]
        names = [f"c{number}", f"w{number}"]
        nodes.append(node("Conv", names, [f"c{number + 1}"], strides=strides))
    graph = onnx.helper.make_graph(
        nodes,
        "strided",
        [info("image", kind, ["N", 8, 6, 6]), info("rows", kind, ["N", 16])],
        [info(f"c{pointwise}", kind, None)],
        [onnx.numpy_helper.from_array(v, name) for name, v in values.items()],
    )
    opset = [onnx.helper.make_opsetid("", 20)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=9)
    feeds = {
        "image": random.standard_normal((2, 8, 6, 6), dtype=np.float32),
        "rows": random.standard_normal((2, 16), dtype=np.float32),
    }
    expected = ReferenceEvaluator(model).run(None, feeds)[0]
    got = OpenVinoSession(model.SerializeToString(), 1).run([f"c{pointwise}"], feeds)[0]
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()
