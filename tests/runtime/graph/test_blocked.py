"""A mixed graph in ONNX Runtime's blocked layout is the same function of every image."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="pip install 'prunion[ort]'")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from prunion.runtime.backends import BlockedSession, SessionOptions, make_ort_session  # noqa: E402
from prunion.runtime.backends.blocked import block_channels  # noqa: E402
from prunion.runtime.errors import UnsupportedGraphError  # noqa: E402
from prunion.runtime.graph import BlockedRewriter  # noqa: E402

DOMAINS, CLASSES, SIDE = 3, 4, 12
OPTIONS = SessionOptions("cpu", threads=1)


@dataclass
class Network:
    """A graph as prunion writes it, grown layer by layer; every weight is random."""

    nodes: list[Any] = field(default_factory=list)
    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    columns: list[int] = field(default_factory=list)
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name, **attributes))
        return name

    def constant(self, value: Any) -> str:
        name = f"constant_{len(self.tensors)}"
        self.tensors[name] = np.array(value)
        return name

    def weight(self, *shape: int) -> str:
        name = f"weight_{len(self.tensors)}"
        spread = np.sqrt(2 / np.prod(shape[1:]))
        self.tensors[name] = (self.random.standard_normal(shape) * spread).astype(np.float32)
        return name

    def part(self, channels: int) -> str:
        self.columns.append(channels)
        return f"part_{len(self.columns) - 1}"

    def affine(self, x: str, channels: int) -> str:
        x = self.add("Mul", x, self.part(channels))
        return self.add("Add", x, self.part(channels))

    def conv(
        self, x: str, given: int, out: int, kernel: int = 1, groups: int = 1, bias: bool = False
    ) -> str:
        inputs = [x, self.weight(out, given // groups, kernel, kernel)]
        inputs += [self.weight(out, 1)] if bias else []
        if bias:
            self.tensors[inputs[2]] = self.tensors[inputs[2]].reshape(-1)
        pads = [kernel // 2] * 4
        x = self.add("Conv", *inputs, group=groups, pads=pads, kernel_shape=[kernel, kernel])
        return self.affine(x, out)

    def clip(self, x: str) -> str:
        ends = [self.constant(np.float32(value)) for value in (0, 6)]
        return self.add("Clip", x, *ends)

    def model(self, features: str, width: int) -> bytes:
        total = sum(self.columns)
        bank = self.random.uniform(0.5, 1.5, (DOMAINS, total)).astype(np.float32)
        head = self.random.standard_normal((DOMAINS, width, CLASSES)).astype(np.float32)
        tables = {"bank": bank, "head_weight": head, "head_bias": np.zeros((DOMAINS, CLASSES))}
        planes, sizes, one = (self.constant(x) for x in ([2, 3], self.columns, [1]))
        node, parts = helper.make_node, [f"part_{i}" for i in range(len(self.columns))]
        first = [
            node("Gather", ["bank", "domain"], ["row"], axis=0),
            node("Unsqueeze", ["row", planes], ["planes"]),
            node("Split", ["planes", sizes], parts, axis=1),
        ]
        last = [
            node("Unsqueeze", [features, one], ["rows"]),
            node("Gather", ["head_weight", "domain"], ["w"], axis=0),
            node("Gather", ["head_bias", "domain"], ["b"], axis=0),
            node("MatMul", ["rows", "w"], ["scores"]),
            node("Squeeze", ["scores", one], ["flat"]),
            node("Add", ["flat", "b"], ["logits"]),
        ]
        value = helper.make_tensor_value_info
        shapes: dict[str, list[Any]] = {"image": ["N", 3, SIDE, SIDE]}
        shapes |= {"bank": ["D", total], "head_weight": ["D", width, "C"], "head_bias": ["D", "C"]}
        inputs = [value(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
        inputs.append(value("domain", TensorProto.INT64, ["N"]))
        arrays = {**self.tensors, **tables}
        kept = {
            k: x if x.dtype == np.int64 else np.asarray(x, np.float32) for k, x in arrays.items()
        }
        graph = helper.make_graph(
            [*first, *self.nodes, *last],
            "network",
            inputs,
            [value("logits", TensorProto.FLOAT, ["N", "C"])],
            [numpy_helper.from_array(array, name) for name, array in kept.items()],
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.checker.check_model(made, full_check=True)
        return bytes(made.SerializeToString())


def pooled(net: Network, x: str) -> str:
    return net.add("ReduceMean", x, net.constant([-1, -2]), keepdims=0)


def resnet(net: Network) -> tuple[str, int]:
    """Residual blocks, a shortcut with a convolution, a maximum; widths that fill no block."""
    x = net.add("Relu", net.conv("image", 3, 20, 3))
    x = net.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    y = net.add("Relu", net.conv(x, 20, 40, 3))
    y = net.conv(y, 40, 20, 3, bias=True)
    x = net.add("Relu", net.add("Add", y, x))
    y = net.conv(net.add("Relu", net.conv(x, 20, 32, 3)), 32, 32, 3)
    x = net.add("Relu", net.add("Add", y, net.conv(x, 20, 32)))
    x = net.add("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
    return pooled(net, x), 32


def mobilenet(net: Network) -> tuple[str, int]:
    """Depthwise convolutions, clips, a linear bottleneck, a gate."""
    x = net.clip(net.conv("image", 3, 16, 3))
    for _ in range(2):
        y = net.clip(net.conv(x, 16, 48))
        y = net.clip(net.conv(y, 48, 48, 3, groups=48))
        gate = net.add("GlobalAveragePool", y)
        gate = net.add("Relu", net.add("Conv", gate, net.weight(16, 48, 1, 1)))
        gate = net.add("Sigmoid", net.add("Conv", gate, net.weight(48, 16, 1, 1)))
        x = net.add("Add", x, net.conv(net.add("Mul", y, gate), 48, 16))
    x = net.add("HardSwish", net.conv(x, 16, 24))
    return pooled(net, x), 24


def others(net: Network) -> tuple[str, int]:
    """Concatenation, groups, an affine alone, and what has no blocked form in the middle."""
    x = net.add("Relu", net.conv("image", 3, 32, 3))
    y = net.add("Relu", net.conv(x, 32, 32, 3, groups=2))
    z = net.add("Relu", net.conv(x, 32, 12, 3))
    x = net.add("Concat", y, x, z, axis=1)  # 76 channels, whole blocks first
    x = net.add("Relu", net.affine(x, 76))
    x = net.conv(x, 76, 32)
    x = net.add("Mul", net.add("Sigmoid", x), x)
    x = net.add("Slice", x, *map(net.constant, ([4], [24], [1])))
    x = net.add("Softplus", net.conv(x, 20, 28, 3, groups=4))
    x = net.add("Concat", x, net.conv(x, 28, 7), axis=1)
    return pooled(net, x), 35


NETWORKS = {"resnet": resnet, "mobilenet": mobilenet, "others": others}


def made(name: str) -> bytes:
    net = Network()
    return net.model(*NETWORKS[name](net))


def tables_of(graph: bytes) -> dict[str, np.ndarray]:
    names = ("bank", "head_weight", "head_bias")
    tensors = {x.name: x for x in onnx.load_from_string(graph).graph.initializer}
    return {name: numpy_helper.to_array(tensors[name]) for name in names}


@pytest.mark.parametrize("fold", [0.0, 0.1, 100.0])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_image_gets_its_own_domains_answer(name: str, fold: float) -> None:
    graph = made(name)
    plain = make_ort_session(graph, OPTIONS)
    session = BlockedSession(graph, OPTIONS, lambda: plain, fold=fold)
    random = np.random.default_rng(1)
    tables = {key: x[[2, 0, 1, 1]] for key, x in tables_of(graph).items()}  # not the defaults
    for count in (1, 2, 7, 13):
        image = random.standard_normal((count, 3, SIDE, SIDE), dtype=np.float32)
        feeds = {"image": image, "domain": random.integers(0, 4, count), **tables}
        (expected,), (got,) = plain.run(["logits"], feeds), session.run(["logits"], feeds)
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    assert session.note() == "", "the plain session answered"


def test_what_runs_in_blocks() -> None:
    rewriter = BlockedRewriter(made("mobilenet"), block_channels(), fold=0.0)
    nodes = onnx.load_from_string(rewriter.graph(2).model).graph.node
    kinds = Counter((node.domain, node.op_type) for node in nodes)
    assert not kinds["", "Conv"]
    assert not kinds["", "Clip"]
    assert not kinds["com.microsoft.nchwc", "ReorderInput"], "never out and in again"
    # 8 layers with an affine, 4 without, and two gates
    assert kinds["com.microsoft.nchwc", "Conv"] == 2 * 8 + 4 + 2
    folded = BlockedRewriter(made("mobilenet"), block_channels(), fold=100.0).graph(2)
    nodes = onnx.load_from_string(folded.model).graph.node
    convolutions = sum(node.op_type == "Conv" for node in nodes)
    assert convolutions == 8 + 1 + 4 + 2, "only the first layer reads plain channels"


def test_weights_are_made_once_for_all_numbers_of_images() -> None:
    rewriter = BlockedRewriter(made("resnet"), block_channels())
    first = rewriter.graph(4)
    arrays = {name: rewriter.weights[name] for name in first.weights}
    second = rewriter.graph(1)
    assert second.weights == first.weights
    assert all(rewriter.weights[name] is array for name, array in arrays.items())
    assert not [x for x in onnx.load_from_string(first.model).graph.initializer if x.name in arrays]


def test_a_graph_without_a_bank_is_refused() -> None:
    model = onnx.load_from_string(made("resnet"))
    kept = [x for x in model.graph.initializer if x.name != "bank"]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    with pytest.raises(UnsupportedGraphError, match="no bank"):
        BlockedRewriter(model.SerializeToString(), 16)
