"""Pinned graphs cut to their domain's channels: the same answers from fewer weights."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from prunion.runtime.backends import make_ort_session, run
from prunion.runtime.bundle import UnitTable, open_bundle
from prunion.runtime.errors import UnsupportedGraphError
from prunion.runtime.graph import pin_pack
from prunion.runtime.graph.slice import slice_channels

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def weights(graph: bytes) -> dict[str, np.ndarray]:
    model = onnx.load_from_string(graph)
    return {x.name: onnx.numpy_helper.to_array(x) for x in model.graph.initializer}


def test_sliced_equals_numpy(bundle_path: Path, toy: ModuleType, batch: np.ndarray) -> None:
    bundle, tables = open_bundle(bundle_path), toy.make_tables()
    pack, table = bundle.pack("flowers"), bundle.unit_table()
    alive = table.round_up(pack.switches, 1)
    assert alive.tolist() == [False, False, *[True] * 6]
    graph = pin_pack(bundle.graph(), pack, table, alive)
    assert weights(graph)["conv.weight"].shape == (6, 3, 3, 3)
    assert weights(graph)["bank"].shape == (1, 12)
    assert weights(graph)["head_weight"].shape == (1, 6, 3)
    got = run(make_ort_session(graph, needs={"image"}), {"image": batch})
    expected = toy.reference(tables, batch, np.zeros(6, int))[:, :3]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_widths_are_filled_up(bundle_path: Path) -> None:
    table = open_bundle(bundle_path).unit_table()
    switches = np.array([0, 1, 0, 0, 1, 0, 1, 0], np.uint8)
    for round_to, count in ((1, 3), (2, 4), (5, 5), (8, 8), (16, 8)):
        alive = table.round_up(switches, round_to)
        assert alive.sum() == count
        assert alive[switches == 1].all()
    assert table.round_up(np.zeros(8, np.uint8), 1).sum() == 1, "no width may become zero"


def graph_of(nodes: list[object], shapes: dict[str, list[int]]) -> object:
    helper = onnx.helper
    values = [
        onnx.numpy_helper.from_array(np.ones(shape, np.float32), name)
        for name, shape in shapes.items()
    ]
    kind = onnx.TensorProto.FLOAT
    ends = [helper.make_tensor_value_info(name, kind, None) for name in ("image", "out")]
    return helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], values))


@pytest.mark.parametrize("kind", ["Softmax", "Transpose", "Shape"])
def test_an_unknown_node_is_named_and_nothing_changes(kind: str) -> None:
    node = onnx.helper.make_node
    nodes = [node("Conv", ["image", "w"], ["x"]), node(kind, ["x"], ["out"], name="odd")]
    model = graph_of(nodes, {"w": [4, 3, 1, 1]})
    table = UnitTable(4, {("w", 0): np.arange(4)})
    before = model.SerializeToString()
    with pytest.raises(UnsupportedGraphError, match=rf"'odd' \({kind}\)"):
        slice_channels(model, table, np.array([True, False, True, True]))
    assert model.SerializeToString() == before


def test_inputs_of_different_channels_are_refused() -> None:
    """More channels on one side, or as many that are not the same units: nothing could be cut."""
    node = onnx.helper.make_node
    table = UnitTable(
        8, {("four", 0): np.arange(4), ("others", 0): np.arange(4, 8), ("two", 0): np.arange(2)}
    )
    shapes = {"four": [4, 3, 1, 1], "others": [4, 3, 1, 1], "two": [2, 3, 1, 1]}
    for second in ("others", "two"):
        nodes = [
            node("Conv", ["image", "four"], ["a"]),
            node("Conv", ["image", second], ["b"]),
            node("Add", ["a", "b"], ["out"], name="sum"),
        ]
        model = graph_of(nodes, shapes)
        before = model.SerializeToString()
        with pytest.raises(UnsupportedGraphError, match=r"'sum' \(Add\).*different channels"):
            slice_channels(model, table, np.ones(8, bool))
        assert model.SerializeToString() == before


def test_a_convolution_that_is_given_other_channels_is_refused() -> None:
    node = onnx.helper.make_node
    nodes = [node("Conv", ["image", "w"], ["a"]), node("Conv", ["a", "v"], ["out"], name="next")]
    model = graph_of(nodes, {"w": [4, 3, 1, 1], "v": [5, 4, 1, 1]})
    slots = {("w", 0): np.arange(4), ("v", 1): np.arange(4)[::-1].copy()}
    with pytest.raises(UnsupportedGraphError, match=r"'next' \(Conv\).*not those it is given"):
        slice_channels(model, UnitTable(4, slots), np.ones(4, bool))


def drawn(model: Any) -> None:
    """Other numbers in place of ones."""
    generator = np.random.default_rng(0)
    for tensor in model.graph.initializer:
        array = generator.standard_normal(tuple(tensor.dims)).astype(np.float32)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))


def answer(model: Any, image: np.ndarray) -> np.ndarray:
    from onnx.reference import ReferenceEvaluator

    return np.asarray(ReferenceEvaluator(model).run(None, {"image": image})[0])


def zeroed(model: Any, table: UnitTable, off: int) -> None:
    """A channel of a layer that is off: what comes out of it is 0."""
    for tensor in model.graph.initializer:
        units = table.slots.get((tensor.name, 0))
        if units is not None:
            array = onnx.numpy_helper.to_array(tensor).copy()
            array[units == off] = 0
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))


def test_linear_layers_over_tokens_follow() -> None:
    """As torch writes a Transformer's hidden layer; what lies around it is left alone."""
    node = onnx.helper.make_node
    nodes = [
        node("Transpose", ["up"], ["up_t"], perm=[1, 0]),
        node("Transpose", ["down"], ["down_t"], perm=[1, 0]),
        node("Softmax", ["image"], ["tokens"], axis=-1),
        node("MatMul", ["tokens", "up_t"], ["a"]),
        node("Add", ["a", "bias"], ["b"]),
        node("Erf", ["b"], ["c"]),
        node("Mul", ["b", "c"], ["d"]),
        node("MatMul", ["d", "down_t"], ["out"]),
    ]
    model = graph_of(nodes, {"up": [6, 3], "bias": [6], "down": [4, 6]})
    drawn(model)
    table = UnitTable(
        6, {("up", 0): np.arange(6), ("bias", 0): np.arange(6), ("down", 1): np.arange(6)}
    )
    zeroed(model, table, 2)
    image = np.random.default_rng(1).standard_normal((2, 5, 3)).astype(np.float32)
    before = answer(model, image)
    slice_channels(model, table, np.arange(6) != 2)
    assert weights(model.SerializeToString())["up"].shape == (5, 3)
    assert weights(model.SerializeToString())["down"].shape == (4, 5)
    np.testing.assert_allclose(answer(model, image), before, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "reason"), [("Softmax", "Softmax of tokens"), ("Add", "different channels")]
)
def test_what_mixes_channels_of_tokens_is_refused(kind: str, reason: str) -> None:
    node = onnx.helper.make_node
    inputs = ["a"] if kind == "Softmax" else ["a", "other"]
    nodes = [
        node("Transpose", ["up"], ["up_t"], perm=[1, 0]),
        node("MatMul", ["image", "up_t"], ["a"]),
        node(kind, inputs, ["out"], name="odd"),
    ]
    model = graph_of(nodes, {"up": [6, 3], "other": [6]})
    slots = {("up", 0): np.arange(6), ("other", 0): np.arange(6)[::-1].copy()}
    with pytest.raises(UnsupportedGraphError, match=rf"'odd' \({kind}\).*{reason}"):
        slice_channels(model, UnitTable(6, slots), np.ones(6, bool))


@pytest.mark.parametrize("kind", ["MatMul", "Add"])
def test_channels_along_another_axis_are_refused(kind: str) -> None:
    """A linear layer over an image's width would leave the channels behind it uncounted."""
    node = onnx.helper.make_node
    nodes = [
        node("Conv", ["image", "w"], ["a"]),
        node("Transpose", ["m"], ["mt"], perm=[1, 0]),
        node(kind, ["a", "mt"], ["b"], name="odd"),
        node("Reshape", ["b", "four"], ["out"]),
    ]
    model = graph_of(nodes, {"w": [4, 3, 1, 1], "m": [8, 8]})
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1, 4]), "four"))
    with pytest.raises(UnsupportedGraphError, match=rf"'odd' \({kind}\)"):
        slice_channels(model, UnitTable(4, {("w", 0): np.arange(4)}), np.ones(4, bool))


def test_tokens_beside_channels_of_another_axis_are_refused() -> None:
    node = onnx.helper.make_node
    nodes = [
        node("Transpose", ["up"], ["up_t"], perm=[1, 0]),
        node("MatMul", ["image", "up_t"], ["a"]),
        node("Conv", ["image", "w"], ["b"]),
        node("Mul", ["a", "b"], ["out"], name="odd"),
    ]
    model = graph_of(nodes, {"up": [6, 3], "w": [6, 3, 1, 1]})
    table = UnitTable(6, {("up", 0): np.arange(6), ("w", 0): np.arange(6)})
    with pytest.raises(UnsupportedGraphError, match=r"'odd' \(Mul\).*different axes"):
        slice_channels(model, table, np.ones(6, bool))


@pytest.mark.parametrize("groups", [1, 4])
def test_transposed_convolutions_follow(groups: int) -> None:
    node = onnx.helper.make_node
    each, out = (5, 5) if groups == 1 else (1, 4)
    nodes = [
        node("Conv", ["image", "w"], ["a"]),
        node("ConvTranspose", ["a", "up"], ["b"], strides=[2, 2], group=groups),
        node("Conv", ["b", "v"], ["out"]),
    ]
    model = graph_of(nodes, {"w": [4, 3, 1, 1], "up": [4, each, 2, 2], "v": [2, out, 1, 1]})
    drawn(model)
    slots = {("w", 0): np.arange(4), ("up", 0): np.arange(4)}
    slots |= {("v", 1): np.arange(4)} if groups > 1 else {}
    table = UnitTable(4, slots)
    zeroed(model, table, 1)
    image = np.random.default_rng(1).standard_normal((1, 3, 4, 4)).astype(np.float32)
    before = answer(model, image)
    slice_channels(model, table, np.arange(4) != 1)
    assert weights(model.SerializeToString())["up"].shape[0] == 3
    np.testing.assert_allclose(answer(model, image), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("named", ["scales", "sizes"])
def test_resized_images_follow(named: str) -> None:
    """Channel by channel, however wide; sizes name how many channels there are."""
    node = onnx.helper.make_node
    amounts = np.array([1, 1, 2, 2], np.float32) if named == "scales" else np.array([1, 4, 8, 8])
    places = ["", named] if named == "scales" else ["", "", named]
    nodes = [
        node("Conv", ["image", "w"], ["a"]),
        node("Resize", ["a", *places], ["b"], name="up", mode="linear"),
        node("Conv", ["b", "v"], ["out"]),
    ]
    model = graph_of(nodes, {"w": [4, 3, 1, 1], "v": [2, 4, 1, 1]})
    drawn(model)
    model.graph.initializer.append(onnx.numpy_helper.from_array(amounts, named))
    table = UnitTable(4, {("w", 0): np.arange(4), ("v", 1): np.arange(4)})
    zeroed(model, table, 1)
    image = np.random.default_rng(1).standard_normal((1, 3, 4, 4)).astype(np.float32)
    before = answer(model, image)
    slice_channels(model, table, np.arange(4) != 1)
    assert weights(model.SerializeToString())["w"].shape[0] == 3
    np.testing.assert_allclose(answer(model, image), before, rtol=1e-4, atol=1e-5)


def test_a_resize_of_channels_is_refused() -> None:
    node = onnx.helper.make_node
    nodes = [
        node("Conv", ["image", "w"], ["a"]),
        node("Resize", ["a", "", "twice"], ["out"], name="up"),
    ]
    model = graph_of(nodes, {"w": [4, 3, 1, 1]})
    twice = onnx.numpy_helper.from_array(np.array([1, 2, 1, 1], np.float32), "twice")
    model.graph.initializer.append(twice)
    with pytest.raises(UnsupportedGraphError, match=r"'up' \(Resize\).*how many channels"):
        slice_channels(model, UnitTable(4, {("w", 0): np.arange(4)}), np.ones(4, bool))


def test_a_node_that_reads_no_cut_channel_may_be_whatever_it_is() -> None:
    node = onnx.helper.make_node
    nodes = [
        node("Conv", ["image", "w"], ["a"]),
        node("Reshape", ["a", "flat"], ["b"]),
        node("Softmax", ["b"], ["out"]),
    ]
    model = graph_of(nodes, {"w": [4, 3, 1, 1]})
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, -1]), "flat"))
    image = np.ones((1, 3, 2, 2), np.float32)
    before = answer(model, image)
    slice_channels(model, UnitTable(4, {}), np.ones(4, bool))
    np.testing.assert_array_equal(answer(model, image), before)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("squeezenet1_1", marks=pytest.mark.thorough),
        pytest.param("shufflenet_v2_x0_5", marks=pytest.mark.slow),
        pytest.param("mobilenet_v3_small", marks=pytest.mark.slow),
        pytest.param("densenet121", marks=pytest.mark.slow),
    ],
)
def test_real_networks_are_sliced_exactly(name: str, tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    from prunion.benchmarks.random_bundle import random_bundle

    bundle = open_bundle(
        random_bundle(tmp_path / "x.prunion", name, 2, round_to=8, size=64, classes=3)
    )
    table, mixed = bundle.unit_table(), make_ort_session(bundle.graph())
    image = np.random.default_rng(0).standard_normal((3, 3, 64, 64), dtype=np.float32)
    for row, domain in enumerate(bundle.domains):
        pack = bundle.pack(domain)
        alive = table.round_up(pack.switches, 1)
        graph = pin_pack(bundle.graph(), pack, table, alive)
        assert len(graph) < 0.85 * bundle.graph().stat().st_size
        expected = run(mixed, {"image": image, "domain": np.full(3, row)})
        got = run(make_ort_session(graph, needs={"image"}), {"image": image})
        assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()
