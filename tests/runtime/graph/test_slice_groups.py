"""Grouped convolutions of a graph that is sliced: how many groups are left."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="pip install 'prunion[ort]'")

from prunion.runtime.bundle import UnitTable  # noqa: E402
from prunion.runtime.graph.slice import slice_channels  # noqa: E402
from tests.runtime.graph.test_slice import answer, graph_of  # noqa: E402


def test_depthwise_groups_and_constants_follow() -> None:
    node = onnx.helper.make_node
    nodes = [
        node("Conv", ["image", "w"], ["a"]),
        node("Conv", ["a", "dw"], ["b"], group=4),
        node("Gather", ["b", "order"], ["c"], axis=1),
        node("Slice", ["c", "from", "to", "axes"], ["d"]),
        node("Concat", ["d", "b"], ["out"], axis=1),
    ]
    model = graph_of(nodes, {"w": [4, 3, 1, 1], "dw": [4, 1, 1, 1]})
    for name, value in (("order", [3, 1, 0, 2]), ("from", [1]), ("to", [4]), ("axes", [1])):
        tensor = onnx.numpy_helper.from_array(np.array(value), name)
        model.graph.initializer.append(tensor)
    for initializer, scale in zip(model.graph.initializer[:2], (1, 10), strict=True):
        shape = tuple(initializer.dims)
        array = np.broadcast_to(scale * np.arange(1, 5).reshape(4, 1, 1, 1), shape)
        initializer.CopyFrom(
            onnx.numpy_helper.from_array(array.astype(np.float32), initializer.name)
        )
    table = UnitTable(4, {("w", 0): np.arange(4), ("dw", 0): np.arange(4)})
    image = {"image": np.ones((1, 3, 1, 1), np.float32)}

    def channels() -> list[float]:
        from onnx.reference import ReferenceEvaluator

        return ReferenceEvaluator(model).run(None, image)[0].ravel().tolist()

    def value(channel: int) -> float:
        return 3 * (channel + 1) * 10 * (channel + 1)

    assert channels() == [value(c) for c in (1, 0, 2, 0, 1, 2, 3)]
    slice_channels(model, table, np.array([True, False, True, True]))
    assert channels() == [value(c) for c in (0, 2, 0, 2, 3)]
    group = next(a.i for a in model.graph.node[1].attribute if a.name == "group")
    assert group == 3


def test_groups_of_one_input_stay_where_only_outputs_are_cut() -> None:
    """A union may leave a grouped convolution one input a group, which depthwise ones have too."""
    nodes = [
        onnx.helper.make_node("Conv", ["image", "w"], ["a"]),
        onnx.helper.make_node("Conv", ["a", "grouped"], ["out"], group=4),
    ]
    model = graph_of(nodes, {"w": [4, 3, 1, 1], "grouped": [8, 1, 1, 1]})
    # The first convolution's channels are one unit, as they are in every group; outputs are two.
    slots = {("w", 0): np.zeros(4, int), ("grouped", 0): 1 + np.arange(8) % 2}
    image = np.random.default_rng(0).standard_normal((2, 3, 2, 2)).astype(np.float32)
    expected = answer(model, image)[:, [0, 2, 4, 6]]
    slice_channels(model, UnitTable(3, slots), np.array([True, True, False]))
    np.testing.assert_allclose(answer(model, image), expected, rtol=1e-6)
