"""Somebody's graph that answers noise with one class alone is timed, with a note."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from prunion.runtime.errors import InputError
from prunion.runtime.measure import bench
from prunion.runtime.measure.benchmark import contenders, together
from prunion.runtime.measure.benchmark.contenders import Setup
from prunion.runtime.measure.benchmark.rivals import all_contenders

onnx = pytest.importorskip("onnx")


def classifier(path: Path, *, bias: float, kind: str = "own") -> str:
    """A softmax over the mean of each channel, of which the first class gets `bias`."""
    node, tensor = onnx.helper.make_node, onnx.numpy_helper.from_array
    value, kinds = onnx.helper.make_tensor_value_info, onnx.TensorProto
    weight = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    held = {"w": weight, "b": np.array([bias, 0, 0, 0, 0], np.float32), "zero": np.array([0])}
    nodes = [
        node("GlobalAveragePool", ["image"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node("MatMul", ["f", "w"], ["l"]),
        node("Add", ["l", "b"], ["s"]),
        node("Softmax", ["s"], ["own"], axis=1),
    ]
    if kind == "no image":  # a row for each, by the batch's shape alone
        nodes += [
            node("Shape", ["image"], ["n"], end=1),
            node("Concat", ["n", "five"], ["shape"], axis=0),
            node("Softmax", ["b"], ["c"]),
            node("Expand", ["c", "shape"], ["y"]),
        ]
        held["five"] = np.array([5])
    elif kind == "one row":
        nodes.append(node("Gather", ["own", "zero"], ["y"]))
    elif kind == "the first":  # the others' rows are no answers
        held["pads"] = np.array([0, 0, 2, 0])
        nodes += [node("Gather", ["own", "zero"], ["g"]), node("Pad", ["g", "pads"], ["y"])]
    else:
        nodes.append(node("Identity", ["own"], ["y"]))
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [value("image", kinds.FLOAT, ["N", 3, "H", "W"])],
        [value("y", kinds.FLOAT, None)],
        [tensor(array, name) for name, array in held.items()],
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return str(path)


def check_of(bundle: Path, path: str) -> Callable[[int], str]:
    _, (found,) = all_contenders(Setup(str(bundle), threads=1, against=(path,)))
    check = found.open().check
    assert check
    return check


@pytest.mark.parametrize(("bias", "noted"), [(0, False), (200, False), (1e6, True)])
def test_one_that_is_sure_of_noise_is_taken(
    bundle_path: Path, tmp_path: Path, bias: float, noted: bool
) -> None:
    """It was refused as a graph that looks at no image, and even one at a time."""
    path = classifier(tmp_path / "x.onnx", bias=bias)
    check = check_of(bundle_path, path)
    assert check(1) == ""
    note = f"{path} answers all images alike here: whether it answers each of a batch does not show"
    assert check(3) == (note if noted else "")


def test_what_does_not_show_is_noted(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = classifier(tmp_path / "x.onnx", bias=1e6)
    monkeypatch.setattr(together, "WARM_UP_S", 0.01)
    monkeypatch.setattr(contenders, "open_blocked", lambda *_: "not here")
    report = bench(
        bundle_path, batches=(2, 3), seconds=0.01, threads=1, against=[path], fresh=False
    )
    assert [x.startswith(path) for x in report.notes].count(True) == 1


@pytest.mark.parametrize("bias", [0, 1e6])
@pytest.mark.parametrize("kind", ["no image", "one row", "the first"])
def test_one_that_does_not_answer_all_is_not(
    bundle_path: Path, tmp_path: Path, kind: str, bias: float
) -> None:
    check = check_of(bundle_path, classifier(tmp_path / "x.onnx", bias=bias, kind=kind))
    for batch in (1, 3) if kind == "no image" else (3,):
        with pytest.raises(InputError, match=f"does not answer each of {batch} images"):
            check(batch)
