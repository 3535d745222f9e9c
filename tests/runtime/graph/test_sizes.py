"""What one image may take: no tensor of a size that nobody knows, and no work without an end."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from prunion.runtime.errors import BundleError  # noqa: E402
from prunion.runtime.graph import sizes  # noqa: E402
from prunion.runtime.graph.inferred import infer_sizes  # noqa: E402

node = helper.make_node


def check(nodes: list[Any], image: tuple[Any, ...] = ("N", 3, 8, 8), **held: Any) -> None:
    """Check the sizes of a graph from `image` to `logits`, which holds the arrays `held`."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("image", TensorProto.FLOAT, image)],
        [value("logits", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in held.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    one = sizes.for_one_image(model, {"image": (0, *image[1:])}, {})
    sizes.check_sizes(infer_sizes(one))


def floats(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


# A column and a row whose lengths are made of the image's pixels, for all that a checker knows.
PIXELS = [
    node("ReduceMax", ["image"], ["largest"], keepdims=0),
    node("Cast", ["largest"], ["whole"], to=TensorProto.INT64),
    node("Reshape", ["whole", "one"], ["number"]),
    node("Sub", ["standing", "number"], ["standing_as"]),
    node("Reshape", ["image", "standing_as"], ["column"]),
    node("Transpose", ["column"], ["row"]),
]
HELD = {"one": np.array([1]), "standing": np.array([-1, 1])}


@pytest.mark.parametrize("kind", ["MatMul", "Mul", "Gemm"])
def test_what_grows_from_unknown_sizes_is_refused(kind: str) -> None:
    """A row times a column is a square, of any size; the unknown counted as 1."""
    with pytest.raises(BundleError, match=rf"'square' \({kind}\) makes a tensor whose size is not"):
        check([*PIXELS, node(kind, ["column", "row"], ["logits"], name="square")], **HELD)


def test_what_stays_within_its_inputs_may_have_unknown_sizes() -> None:
    scaled = [node("Mul", ["column", "two"], ["more"]), node("Relu", ["more"], ["logits"])]
    check([*PIXELS, *scaled], **HELD, two=np.float32(2))


COUNT = [
    node("Shape", ["image"], ["count1"], start=0, end=1),
    node("Squeeze", ["count1"], ["count"]),
]


@pytest.mark.parametrize(
    "nodes",
    [
        [
            node("Concat", ["zeros", "image"], ["longer"], axis=0),
            node("Slice", ["longer", "nought1", "count1", "nought1"], ["made"]),
        ],
        [
            node("Mul", ["count", "four"], ["most"]),
            node("Range", ["nought", "most", "step"], ["places"]),
            node("Gather", ["image", "places"], ["made"], axis=2),
        ],
        [
            node("Slice", ["zeros", "nought1", "count1", "nought1"], ["some"]),
            node("Shape", ["some"], ["some_as"]),
            node("Slice", ["some_as", "nought1", "count1"], ["rows"]),
            node("Squeeze", ["rows"], ["row"]),
            node("Range", ["nought", "row", "step"], ["places"]),
            node("Gather", ["image", "places"], ["made"], axis=2),
        ],
    ],
    ids=["slice", "range", "slice of a slice"],
)
def test_sizes_that_are_counted_from_the_images_are_known(nodes: list[Any]) -> None:
    """Windows that are shifted, and `x[: batch.shape[0]]`: Swin and others were refused."""
    held = {name: np.array(value) for name, value in (("nought", 0), ("step", 1), ("four", 4))}
    last = node("Mul", ["made", "made"], ["logits"])
    nodes = [*COUNT, *nodes, last]
    check(nodes, **held, zeros=floats(12, 3, 8, 8), nought1=np.array([0]))


def test_what_a_file_says_of_its_sizes_is_not_believed() -> None:
    claimed = helper.make_tensor_value_info("column", TensorProto.FLOAT, [1, 1])
    graph = helper.make_graph(
        [*PIXELS, node("MatMul", ["column", "row"], ["logits"])],
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 1])],
        [numpy_helper.from_array(array, name) for name, array in HELD.items()],
        value_info=[claimed],
    )
    one = sizes.for_one_image(helper.make_model(graph), {"image": (0, 3, 8, 8)}, {})
    with pytest.raises(BundleError, match="size is not known"):
        sizes.check_sizes(infer_sizes(one))


def test_a_pooling_that_would_not_end_is_refused() -> None:
    """A few bytes of attributes asked for an hour: 13,000 steps for each of a billion numbers."""
    nodes = [
        node("Resize", ["image", "", "", "size"], ["large"]),
        node("LpPool", ["large"], ["logits"], "pool", kernel_shape=[1023, 1023], pads=[511] * 4),
    ]
    with pytest.raises(BundleError, match=r"13,1.* steps beside them, .* in node 'pool' \(LpPool"):
        check(nodes, size=np.array([1, 3, 2048, 2048]))


def test_a_chain_that_would_not_end_is_refused() -> None:
    nodes = [node("Expand", ["image", "size"], ["wide0"])]
    nodes += [node("Relu", [f"wide{k}"], [f"wide{k + 1}"]) for k in range(300)]
    nodes.append(node("Relu", ["wide300"], ["logits"]))
    with pytest.raises(BundleError, match="steps beside them, more than"):
        check(nodes, (1, 1, 1, 1), size=np.array([1, 1, 1 << 14, 1 << 14]))


@pytest.mark.parametrize(
    ("nodes", "held", "products"),
    [
        ([node("Conv", ["image", "w"], ["logits"])], {"w": floats(5, 3, 3, 3)}, 5 * 36 * 27),
        (
            [node("Conv", ["image", "w"], ["logits"], group=3, pads=[1] * 4)],
            {"w": floats(3, 1, 3, 3)},
            3 * 64 * 9,
        ),
        (
            [node("ConvTranspose", ["image", "w"], ["logits"], strides=[2, 2])],
            {"w": floats(3, 4, 2, 2)},
            3 * 64 * 4 * 4,
        ),
        ([node("MatMul", ["image", "w"], ["logits"])], {"w": floats(8, 7)}, 3 * 8 * 7 * 8),
        (
            [
                node("Flatten", ["image"], ["f"]),
                node("Gemm", ["f", "w"], ["logits"], transB=1),
            ],
            {"w": floats(7, 192)},
            192 * 7,
        ),
        (
            [node("Einsum", ["image", "w"], ["logits"], equation="...hw, cko -> ...ko")],
            {"w": floats(2, 5, 6)},
            3 * 8 * 8 * 2 * 5 * 6,
        ),
    ],
)
def test_products_are_counted(
    nodes: list[Any], held: dict[str, Any], products: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(nodes, **held)
    monkeypatch.setattr(sizes, "MOST_PRODUCTS", products - 1)
    with pytest.raises(BundleError, match=re.escape(f"take {products:,} multiply-accumulates")):
        check(nodes, **held)


def test_an_einsum_of_three_holds_what_lies_between() -> None:
    nodes = [
        node("Reshape", ["image", "flat"], ["line"]),
        node("Einsum", ["line", "line", "line"], ["logits"], equation="na,nb,nc->n"),
    ]
    with pytest.raises(BundleError, match=r"Einsum\) may hold 452,984,832 numbers"):
        check(nodes, (1, 3, 16, 16), flat=np.array([1, -1]))
