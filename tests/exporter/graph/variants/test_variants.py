"""Every variant is the same function, with its types in the graph, and TensorRT reads it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

from prunion.exporter.bundle import export_bundle
from prunion.exporter.graph import (
    make_probe,
    onnx_graph,
    open_graph,
    relative_errors,
    run_graph,
    verify_export,
)
from prunion.exporter.graph.variants.float16 import half_graph
from prunion.exporter.graph.variants.uint8 import pixel_graph
from prunion.exporter.options import ExportOptions
from prunion.exporter.slim import slim_network
from prunion.exporter.verify import verify_bundle
from prunion.runtime.errors import ConfigError, UnsupportedGraphError, VerificationError
from tests.exporter.slim.test_network import Concat, NoNorm, Shuffle, switch_off
from tests.support.networks.small import Depthwise, Plain, Residual, SqueezeExcite, domain_net

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
NAMES = ["a", "b", "c"]


@pytest.fixture(scope="module")
def bundle(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("variants") / "tiny.prunion"
    options = ExportOptions(opset=18, heads="concatenated", fp16=True, uint8=True)
    export_bundle(tiny, output, options)
    return output


def small(model: nn.Module) -> onnx.ModelProto:
    return onnx_graph(slim_network(switch_off(domain_net(model, (3, 5, 2)))), 8, 8)


def errors(reference: onnx.ModelProto, other: onnx.ModelProto) -> dict[str, float]:
    probe = make_probe(9, (8, 8), MEAN, STD, domains=3)
    logits = [run_graph(open_graph(m.SerializeToString()), probe) for m in (reference, other)]
    return relative_errors(*logits, probe.domains, NAMES, "the variant")


def types(graph: onnx.ModelProto) -> dict[str, int]:
    return {i.name: i.type.tensor_type.elem_type for i in [*graph.graph.input, *graph.graph.output]}


@pytest.mark.parametrize("model", [SqueezeExcite, NoNorm, Shuffle])
def test_float16_and_pixels_compute_the_same(model: type[nn.Module]) -> None:
    full = small(model())
    half = half_graph(full)
    assert max(errors(full, half).values()) < 5e-3
    assert max(errors(full, pixel_graph(full, 3, MEAN, STD)).values()) < 1e-5
    assert max(errors(full, pixel_graph(half, 3, MEAN, STD)).values()) < 5e-3


class Enlarged(Plain):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = nn.functional.interpolate(x, scale_factor=2.0)
        return self.bn2(self.conv2(x)).relu().mean((2, 3))


def test_scales_of_a_resize_stay_float32() -> None:
    """ONNX knows no other type of them, and its checker refused the graph."""
    graph = small(Enlarged())
    half = half_graph(graph)
    (node,) = (n for n in half.graph.node if n.op_type == "Resize")
    scales = {i.name: i.data_type for i in half.graph.initializer}
    assert scales[node.input[2]] == TensorProto.FLOAT
    assert max(errors(graph, half).values()) < 0.01


class Filled(Plain):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = super().forward(x)
        return x + x.new_zeros(x.shape[0], 1) + x.new_full((x.shape[0], 1), 0.1)


def test_what_fills_a_shape_is_float16_too() -> None:
    """Zeros say no type, and are float32: the checker's error was all that was told."""
    graph = small(Filled())
    half = half_graph(graph)
    assert {n.op_type for n in half.graph.node} & {"ConstantOfShape", "Expand"}
    assert max(errors(graph, half).values()) < 0.01


def test_float16_is_in_the_graph_and_the_heads_stay_float32() -> None:
    half = half_graph(small(Residual()), "float16")
    kinds = {i.name: i.data_type for i in half.graph.initializer}
    assert kinds["conv1.weight"] == TensorProto.FLOAT16
    assert {kinds[name] for name in ("bank", "head_weight", "head_bias")} == {TensorProto.FLOAT}
    assert types(half)["image"] == TensorProto.FLOAT16
    assert types(half)["logits"] == TensorProto.FLOAT
    made = {i.name: i.type.tensor_type.elem_type for i in half.graph.value_info}
    convolutions = [n for n in half.graph.node if n.op_type == "Conv"]
    assert {made[n.output[0]] for n in convolutions} == {TensorProto.FLOAT16}
    (bias,) = (numpy_helper.to_array(i) for i in half.graph.initializer if i.name == "head_bias")
    assert np.isneginf(bias[0, 3:]).all()


def test_a_bank_beyond_float16_is_refused() -> None:
    full = small(Residual())
    (bank,) = (i for i in full.graph.initializer if i.name == "bank")
    value = numpy_helper.to_array(bank).copy()
    value[1, 0] = 1e6
    bank.CopyFrom(numpy_helper.from_array(value, "bank"))
    with pytest.raises(VerificationError, match="1e\\+06, beyond float16"):
        half_graph(full)


@pytest.mark.parametrize(
    "opset", [13, 21, *(pytest.param(n, marks=pytest.mark.thorough) for n in (17, 18))]
)
def test_every_opset_computes_the_same(opset: int, tmp_path: Path) -> None:
    model = Residual() if opset % 2 else Concat()
    net = switch_off(domain_net(model, (3, 5, 2)))
    slim = slim_network(net)
    graph = onnx_graph(slim, 8, 8, opset)
    assert graph.opset_import[0].version == opset
    assert graph.ir_version == onnx.helper.find_min_ir_version_for(list(graph.opset_import))
    onnx.save(graph, tmp_path / "model.onnx")
    images = torch.randn(9, 3, 8, 8)
    assert verify_export(net, slim, tmp_path / "model.onnx", images, NAMES).worst < 1e-5


def test_versions_that_do_not_fit_are_refused() -> None:
    slim = slim_network(switch_off(domain_net(Residual(), (3, 5))))
    with pytest.raises(ConfigError, match="needs an IR version in 9"):
        onnx_graph(slim, 8, 8, 20, ir=8)
    with pytest.raises(ConfigError, match=r"outside 13\.\.21"):
        ExportOptions(opset=22)

    class Swish(Residual):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.hardswish(self.bn1(self.conv1(x))).mean((2, 3))

    slim = slim_network(switch_off(domain_net(Swish(), (3, 5))))
    assert onnx_graph(slim, 8, 8, 14).opset_import[0].version == 14
    with pytest.raises(UnsupportedGraphError, match="choose 14"):
        onnx_graph(slim, 8, 8, 13)


def test_concatenated_heads_compute_the_same_and_take_a_new_domain() -> None:
    net = switch_off(domain_net(Depthwise(), (3, 5, 2)))
    slim = slim_network(net)
    plain = onnx_graph(slim, 8, 8)
    joined = onnx_graph(slim, 8, 8, heads="concatenated")
    assert max(errors(plain, joined).values()) < 1e-5
    values = {i.name: numpy_helper.to_array(i) for i in joined.graph.initializer}
    assert values["head_weight"].shape == (slim.head_weight.shape[1], 10)
    session = open_graph(joined.SerializeToString())
    image = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
    (known,) = session.run(["logits"], {"image": image, "domain": np.array([1, 1])})
    tables = {name: values[name] for name in ("bank", "head_bias", "head_columns")}
    tables = {name: np.concatenate([t, t[1:2]]) for name, t in tables.items()}
    feeds = {"image": image, "domain": np.array([3, 1]), **tables}
    np.testing.assert_allclose(session.run(["logits"], feeds)[0], known, rtol=1e-6)


def test_each_domain_may_have_its_own_normalisation() -> None:
    full = small(Residual())
    session = open_graph(pixel_graph(full, 3, MEAN, STD).SerializeToString())
    row = np.concatenate([1 / (255 * np.array(STD)), -np.array(MEAN) / STD])
    pixels = np.tile(row, (3, 1)).astype(np.float32)
    pixels[1] = [1 / 255] * 3 + [0] * 3
    probe = make_probe(3, (8, 8), MEAN, STD, domains=3)
    feeds = {"image": probe.pixels, "domain": probe.domains}
    (default,) = session.run(["logits"], feeds)
    (changed,) = session.run(["logits"], {**feeds, "pixels": pixels})
    plain = make_probe(3, (8, 8), (0, 0, 0), (1, 1, 1), domains=3)
    expected = run_graph(open_graph(full.SerializeToString()), plain)
    np.testing.assert_allclose(changed[1], expected[1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(changed[[0, 2]], default[[0, 2]], rtol=1e-5)


def test_a_bundle_of_all_variants_holds(bundle: Path, tiny: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert list(manifest["graphs"]) == ["fp32", "fp16", "fp32-uint8", "fp16-uint8"]
    for variant in ("fp16", "fp16-uint8"):
        facts = manifest["verified"]["variants"][variant]
        assert facts["max_relative_error"].keys() == {"warm", "cold"}
        assert 0 < max(facts["max_relative_error"].values()) < facts["tolerance"]
    report = verify_bundle(bundle, against=tiny)
    assert not report.problems
    assert {x.graph for x in report.compared} == set(manifest["graphs"])


def test_tensorrt_parses_every_variant(bundle: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install 'prunion[tensorrt-rtx]'")
    from tests.support.parsed import check_parses

    for path in sorted(bundle.glob("*.onnx")):
        check_parses(path)
