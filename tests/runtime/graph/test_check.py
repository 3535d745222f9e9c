"""Graphs from elsewhere: what ONNX would allow and no bundle holds is refused before it runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from prunion.runtime.base import sha256_file  # noqa: E402
from prunion.runtime.bundle import open_bundle  # noqa: E402
from prunion.runtime.bundle.manifest import LATEST  # noqa: E402
from prunion.runtime.errors import BundleError  # noqa: E402
from prunion.runtime.graph import form_of, light_copy  # noqa: E402
from prunion.runtime.model import load  # noqa: E402


def rewritten(bundle: Path, change: Callable[[onnx.GraphProto], object]) -> Path:
    """The bundle with its graph changed and its hash made to fit."""
    file = bundle / "model.onnx"
    model = onnx.load(file)
    change(model.graph)
    onnx.save(model, file)
    manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
    manifest["files"]["model.onnx"] = sha256_file(file)
    (bundle / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    return bundle


def before_logits(graph: onnx.GraphProto, node: onnx.NodeProto) -> None:
    """Let `node`, which makes `extra`, be added to the logits."""
    graph.node[-1].output[0] = "plain"
    graph.node.extend([node, helper.make_node("Add", ["plain", "extra"], ["logits"])])


def constant(graph: onnx.GraphProto, name: str, value: object, kind: type = np.int64) -> None:
    graph.initializer.append(numpy_helper.from_array(np.array(value, kind), name))


def endless(graph: onnx.GraphProto) -> None:
    value = helper.make_tensor_value_info
    inner = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Neg", ["x"], ["y"])],
        "body",
        [
            value("i", TensorProto.INT64, []),
            value("go", TensorProto.BOOL, []),
            value("x", TensorProto.FLOAT, [1]),
        ],
        [value("on", TensorProto.BOOL, []), value("y", TensorProto.FLOAT, [1])],
    )
    constant(graph, "most", 2**62)
    constant(graph, "start", True, np.bool_)
    constant(graph, "zero", [0.0], np.float32)
    before_logits(graph, helper.make_node("Loop", ["most", "start", "zero"], ["extra"], body=inner))


def giant(graph: onnx.GraphProto) -> None:
    constant(graph, "giant", [1, 300_000_000])
    before_logits(graph, helper.make_node("ConstantOfShape", ["giant"], ["filled"]))
    graph.node[-2].output[0] = "filled"
    graph.node.insert(
        len(graph.node) - 1, helper.make_node("ReduceMax", ["filled"], ["extra"], keepdims=0)
    )


def expanded(graph: onnx.GraphProto) -> None:
    constant(graph, "one_row", [[1.0]], np.float32)
    constant(graph, "giant", [1, 300_000_000])
    before_logits(graph, helper.make_node("Expand", ["one_row", "giant"], ["wide"]))
    graph.node.insert(
        len(graph.node) - 1, helper.make_node("ReduceMax", ["wide"], ["extra"], keepdims=0)
    )


def held_together(graph: onnx.GraphProto) -> None:
    """Each is small enough alone; their sum needs all of them."""
    constant(graph, "one_row", [[1.0]], np.float32)
    constant(graph, "large", [1, 200_000_000])
    before_logits(graph, helper.make_node("Expand", ["one_row", "large"], ["wide"]))
    nodes = [helper.make_node("Neg", ["wide"], [f"wide{k}"]) for k in range(6)]
    nodes.append(helper.make_node("Sum", [f"wide{k}" for k in range(6)], ["added"]))
    nodes.append(helper.make_node("ReduceMax", ["added"], ["extra"], keepdims=0))
    for node in nodes:
        graph.node.insert(len(graph.node) - 1, node)


def of_a_foreign_domain(graph: onnx.GraphProto) -> None:
    graph.node[-1].domain = "evil.example"


def first_weight(graph: onnx.GraphProto) -> onnx.TensorProto:
    return next(x for x in graph.initializer if x.name == "conv.weight")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (endless, "'Loop', which no bundle's graph may hold"),
        (giant, "too large for one image"),
        (expanded, "too large for one image"),
        (held_together, "numbers held at once, too many for one image"),
        (of_a_foreign_domain, "which no bundle's graph may hold"),
        (lambda g: setattr(first_weight(g), "raw_data", b"1234"), "its shape needs"),
        (lambda g: setattr(first_weight(g), "data_type", TensorProto.FLOAT8E4M3FN), "type"),
        (lambda g: first_weight(g).dims.__setitem__(0, -1), "negative size"),
        (lambda g: g.node[4].input.__setitem__(1, "nowhere"), "no sound ONNX graph"),
        (lambda g: g.node[4].output.__setitem__(0, "row"), "no sound ONNX graph"),
        (lambda g: g.node[0].input.pop(), "no sound ONNX graph"),
        (lambda g: setattr(g.output[0], "name", "pooled"), "not logits"),
        (lambda g: setattr(g.input[0], "name", "im\x1b[2Jage"), "an input"),
        (lambda g: g.initializer.append(g.initializer[0]), "twice"),
        (lambda g: setattr(g.input[0].type.tensor_type.shape.dim[1], "dim_value", 4), "needs"),
        (
            lambda g: setattr(g.input[0].type.tensor_type, "elem_type", TensorProto.UINT8),
            "its images are uint8, and those of its precision float32",
        ),
    ],
)
def test_a_graph_that_no_export_writes(
    own_bundle: Path, change: Callable[[onnx.GraphProto], object], says: str
) -> None:
    bundle = rewritten(own_bundle, change)
    with pytest.raises(BundleError, match=says) as told:
        load(bundle, "cpu")
    message = str(told.value)
    assert message.startswith(str(bundle / "model.onnx"))
    assert message.isprintable(), message


def test_a_sound_graph_of_another_form_is_refused_in_words(own_bundle: Path) -> None:
    def split_into_more(graph: onnx.GraphProto) -> None:
        sizes = next(x for x in graph.initializer if x.name == "sizes")
        sizes.CopyFrom(numpy_helper.from_array(np.array([8, 8, 0]), "sizes"))
        graph.node[1].output.append("nothing")

    image = np.zeros((12, 10, 3), np.uint8)
    with load(own_bundle, "cpu") as model:
        expected = model.predict(image, "flowers")
    with load(rewritten(own_bundle, split_into_more), "cpu") as model:
        try:
            assert model.predict(image, "flowers") == expected
        except BundleError as exc:
            assert "not as prunion writes it" in str(exc)


def list_adapters(file: Path) -> None:
    """Let a manifest list one adapter of `[4, 3]`."""
    entry = {"weight": "w", "kind": "beside", "outputs": 4, "inputs": 3, "rank": 0, "offset": 0}
    value = json.loads(file.read_text("utf-8"))
    value |= {"adapters": [entry], "format_version": LATEST}
    file.write_text(json.dumps(value), "utf-8")


def test_a_manifest_and_a_graph_of_which_one_has_adapters(own_bundle: Path) -> None:
    file = own_bundle / "manifest.json"
    plain = file.read_text("utf-8")
    list_adapters(file)
    with pytest.raises(BundleError, match="holds no table 'adapters', which the manifest lists"):
        form_of(open_bundle(own_bundle))
    file.write_text(plain, "utf-8")
    rewritten(own_bundle, lambda graph: constant(graph, "adapters", [[0.0]], np.float32))
    with pytest.raises(BundleError, match="holds a table 'adapters', which the manifest does not"):
        form_of(open_bundle(own_bundle))


def test_a_table_without_columns_fits_no_manifest(own_bundle: Path) -> None:
    list_adapters(own_bundle / "manifest.json")
    rewritten(own_bundle, lambda graph: constant(graph, "adapters", np.zeros((3, 0)), np.float32))
    with pytest.raises(BundleError, match=r"adapters is \[3, 0\]"):
        form_of(open_bundle(own_bundle))


def test_the_sizes_of_a_split_into_many_parts_are_read(own_bundle: Path) -> None:
    """The bank of DenseNet-121 has 242, and the sizes behind them were not known."""
    model = onnx.load(own_bundle / "model.onnx")
    sizes = next(x for x in model.graph.initializer if x.name == "sizes")
    sizes.CopyFrom(numpy_helper.from_array(np.array([8, 8, *[0] * 240]), "sizes"))
    split = next(x for x in model.graph.node if x.op_type == "Split")
    split.output.extend(f"part_{number}" for number in range(240))
    del model.graph.value_info[:]
    light = light_copy(model)
    assert "conv.weight" in [x.name for x in light.graph.initializer]
    found = onnx.shape_inference.infer_shapes(light, data_prop=True).graph.value_info
    (conv,) = (x for x in found if x.name == "normed")
    assert [x.dim_value for x in conv.type.tensor_type.shape.dim][1:] == [8, 12, 10]
