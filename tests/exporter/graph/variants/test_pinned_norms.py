"""Pinned graphs: a bank's scale and shift becomes BatchNormalization where no weight takes it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from prunion.exporter.bundle.packs import domain_pack
from prunion.exporter.graph import onnx_graph
from prunion.exporter.graph.variants.float16 import half_graph
from prunion.exporter.slim import slim_network
from prunion.runtime.backends import make_ort_session, run
from prunion.runtime.graph import pin_domain, pin_pack
from prunion.runtime.graph.norms import normalise_affines
from tests.exporter.slim.test_network import Concat, PreActivation, switch_off
from tests.support.networks.small import Plain, Residual, domain_net


class Dense(Plain):
    """Normalised behind a concatenation, behind a pooling, and once on `[N, C]`."""

    def __init__(self) -> None:
        super().__init__()
        self.bn2, self.conv2 = nn.BatchNorm2d(9), nn.Conv2d(9, 8, 3, padding=1, bias=False)
        self.bn3, self.last = nn.BatchNorm2d(8), nn.Linear(8, 5)
        self.bn4 = nn.BatchNorm1d(5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn2(torch.cat([x, self.bn1(self.conv1(x)).relu()], 1)).relu()
        x = self.bn3(nn.functional.max_pool2d(self.conv2(x), 2)).relu()
        return self.bn4(self.last(x.mean((2, 3)))).relu()


def operators(graph: bytes) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load_from_string(graph).graph.node)


@pytest.mark.parametrize("model", [Concat, Dense, PreActivation])
def test_every_pinned_form_answers_as_the_mixed_graph(model: type[nn.Module]) -> None:
    slim = slim_network(switch_off(domain_net(model(), (3, 5))))
    whole = onnx_graph(slim, 8, 8).SerializeToString()
    image = np.random.default_rng(0).standard_normal((4, 3, 8, 8), dtype=np.float32)
    for row, classes in enumerate((3, 5)):
        names = [f"c{i}" for i in range(classes)]
        pack = domain_pack(slim, row, {"name": f"d{row}", "classes": names}, "0" * 64)
        alive = slim.table.round_up(pack.switches, 1)
        cut = pin_pack(whole, pack, slim.table, alive)
        assert len(cut) < len(whole)
        feeds = {"image": image, "domain": np.full(4, row)}
        expected = run(make_ort_session(whole), feeds)[:, :classes]
        for graph in (cut, pin_pack(whole, pack), pin_domain(whole, row)):
            got = run(make_ort_session(graph, needs={"image"}), {"image": image})[:, :classes]
            assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()
            onnx.checker.check_model(onnx.load_from_string(graph), full_check=True)


@pytest.mark.parametrize(
    ("model", "norms", "products"),
    [
        (Residual, 0, 3),  # each behind a convolution, whose weights take it
        (PreActivation, 2, 1),  # conv1 is read by the shortcut too, which has a gate of its own
        (Dense, 2, 2),  # conv1's own stays; so does the one over [N, C]
    ],
)
def test_only_what_no_weight_can_take_is_rewritten(
    model: type[nn.Module], norms: int, products: int
) -> None:
    slim = slim_network(switch_off(domain_net(model(), (3, 4))))
    counts = operators(pin_domain(onnx_graph(slim, 8, 8).SerializeToString(), 1))
    assert (counts["BatchNormalization"], counts["Mul"]) == (norms, products)


def test_the_same_numbers_to_the_last_bit() -> None:
    """Mean 0, variance 1, epsilon 0: unoptimised ONNX Runtime gives what it gave before."""
    import onnxruntime

    slim = slim_network(switch_off(domain_net(Dense(), (3, 4))))
    model = onnx_graph(slim, 8, 8)
    del model.graph.input[1:]
    pinned = onnx.numpy_helper.from_array(np.zeros(1, np.int64), "domain")
    model.graph.initializer.append(pinned)
    before = model.SerializeToString()
    assert normalise_affines(model) == 2
    assert normalise_affines(model) == 0, "nothing is left to rewrite"
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    image = np.random.default_rng(0).standard_normal((4, 3, 8, 8), dtype=np.float32)
    old, new = (
        onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"]).run(
            None, {"image": image}
        )[0]
        for graph in (before, model.SerializeToString())
    )
    np.testing.assert_allclose(new, old, rtol=1e-6, atol=1e-7)


def test_a_float16_graph_is_left_alone() -> None:
    slim = slim_network(switch_off(domain_net(Dense(), (3, 4))))
    half = half_graph(onnx_graph(slim, 8, 8)).SerializeToString()
    pinned = pin_domain(half, 1)
    assert operators(pinned)["BatchNormalization"] == 0
    image = np.random.default_rng(0).standard_normal((4, 3, 8, 8), dtype=np.float32)
    expected = run(make_ort_session(half), {"image": image, "domain": np.full(4, 1)})
    np.testing.assert_allclose(
        run(make_ort_session(pinned, needs={"image"}), {"image": image}),
        expected,
        rtol=2e-2,
        atol=2e-2,
    )
