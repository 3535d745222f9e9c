"""What float16 cannot hold stays float32: shown in real float16 arithmetic."""

from __future__ import annotations

import hashlib
import json
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from torch import nn

from prunion.exporter.graph import make_probe, onnx_graph, open_graph, run_graph
from prunion.exporter.graph.variants.activations import largest_values
from prunion.exporter.graph.variants.float16 import LARGEST, MARGIN, float32_layers, half_graph
from prunion.exporter.slim import slim_network
from prunion.runtime.bundle import open_bundle
from prunion.runtime.cli import cli
from prunion.runtime.errors import VerificationError
from prunion.runtime.graph import form_of, pin_form
from tests.exporter.slim.test_network import Concat, Shuffle, switch_off
from tests.support.networks.small import Residual, SqueezeExcite, domain_net

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT


@cache
def exported(model: type[nn.Module]) -> bytes:
    slim = slim_network(switch_off(domain_net(model(), (3, 5, 2))))
    return onnx_graph(slim, 8, 8).SerializeToString()


def graph_of(model: type[nn.Module], scale: float) -> onnx.ModelProto:
    """`model` whose first weight is up to `scale`, which the norm behind it brings back."""
    full = onnx.load_from_string(exported(model))
    values = {i.name: i for i in full.graph.initializer}
    layer = next(n.input[1] for n in full.graph.node if n.op_type == "Conv")
    weight = values[layer]
    value = numpy_helper.to_array(weight)
    factor = np.float32(scale / np.abs(value).max())
    weight.CopyFrom(numpy_helper.from_array(value * factor, weight.name))
    # The bank's scales behind it, by the product that reads the convolution.
    conv = next(n for n in full.graph.node if weight.name in n.input)
    after = next(n for n in full.graph.node if n.op_type == "Mul" and conv.output[0] in n.input)
    makers = {out: n for n in full.graph.node for out in n.output}
    (part,) = (name for name in after.input if name != conv.output[0])
    while makers[part].op_type != "Split":
        part = makers[part].input[0]
    split = makers[part]
    sizes = numpy_helper.to_array(values[split.input[1]])
    index = list(split.output).index(part)
    start = int(sizes[:index].sum())
    bank = numpy_helper.to_array(values["bank"]).copy()
    bank[:, start : start + sizes[index]] /= factor
    values["bank"].CopyFrom(numpy_helper.from_array(bank, "bank"))
    return full


def probe_of(model: onnx.ModelProto) -> dict[str, float]:
    probe = make_probe(9, (8, 8), MEAN, STD, domains=3)
    feeds = zip(probe.images, probe.domains, strict=True)
    return largest_values(model, ({"image": i[None], "domain": d[None]} for i, d in feeds))


def real(model: onnx.ModelProto) -> tuple[np.ndarray, np.ndarray]:
    """Logits where float16 is computed as float16, and what they should be."""
    probe = make_probe(9, (8, 8), MEAN, STD, domains=3)
    with np.errstate(over="ignore", invalid="ignore"):
        evaluator = ReferenceEvaluator(model)
        (got,) = evaluator.run(["logits"], {"image": probe.images, "domain": probe.domains})
    return np.asarray(got), run_graph(open_graph(model.SerializeToString()), probe)


def off(expected: np.ndarray, got: np.ndarray) -> float:
    own = np.isfinite(expected)
    return float(np.abs(expected[own] - got[own]).max() / np.abs(expected[own]).max())


@pytest.mark.parametrize("model", [Residual, SqueezeExcite, Shuffle, Concat])
@pytest.mark.parametrize("scale", [3e4, 1e6])
def test_a_layer_beyond_float16_stays_float32(model: type[nn.Module], scale: float) -> None:
    full = graph_of(model, scale)
    largest = probe_of(full)
    expected = run_graph(
        open_graph(full.SerializeToString()), make_probe(9, (8, 8), MEAN, STD, domains=3)
    )
    if scale < LARGEST:  # beyond it the weight itself was refused
        plain, rounded = real(half_graph(full))
        assert off(expected, rounded) < 3e-2, "what the exporting machine computes looks right"
        assert not off(expected, plain) < 3e-2, "and is not"
    half = half_graph(full, largest=largest)
    got, _ = real(half)
    assert off(expected, got) < 1e-2
    layers = float32_layers(full, largest)
    (first,) = layers
    assert layers[first] > LARGEST / MARGIN
    kinds = {i.name: i.data_type for i in half.graph.initializer}
    assert kinds[f"{first}.weight"] == FLOAT
    assert HALF in kinds.values(), "the other layers are float16"


def test_a_graph_within_float16_is_what_it_was() -> None:
    full = graph_of(Residual, 0.5)
    largest = probe_of(full)
    assert float32_layers(full, largest) == {}
    assert half_graph(full, largest=largest) == half_graph(full)


def test_the_margin_counts() -> None:
    full = graph_of(Residual, 0.5)
    (conv,) = (n for n in full.graph.node if "conv1.weight" in n.input)
    for value, kept in ((LARGEST / MARGIN, []), (LARGEST / MARGIN + 1, ["conv1"])):
        assert list(float32_layers(full, {conv.output[0]: value})) == kept


def test_no_layer_left_for_float16_is_refused() -> None:
    full = graph_of(Residual, 0.5)
    everything = {out: 1e5 for node in full.graph.node for out in node.output}
    with pytest.raises(VerificationError, match=r"every layer meets values of 1e\+05.*--fp16"):
        half_graph(full, largest=everything)


def test_the_largest_values_are_those_of_the_graph() -> None:
    full = graph_of(SqueezeExcite, 100.0)
    probe = make_probe(9, (8, 8), MEAN, STD, domains=3)
    evaluator = ReferenceEvaluator(full)
    names = [n for node in full.graph.node for n in node.output if node.op_type in ("Conv", "Mul")]
    values = evaluator.run(names, {"image": probe.images, "domain": probe.domains})
    largest = probe_of(full)
    for name, value in zip(names, values, strict=True):
        assert largest[name] == pytest.approx(np.abs(value).max(), rel=1e-4), name


@pytest.fixture(scope="module")
def overflowing(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run with a first convolution whose outputs leave float16, and its norm alike."""
    run = tmp_path_factory.mktemp("overflowing") / "run"
    shutil.copytree(tiny, run)
    path = run / "checkpoint" / "model.safetensors"
    with safe_open(path, "np") as file:
        meta = file.metadata()
    tensors = load_file(path)
    factor = np.float32(30000 / np.abs(tensors["trunk.conv1.weight"]).max())
    tensors["trunk.conv1.weight"] = tensors["trunk.conv1.weight"] * factor
    tensors["trunk.norms.bn1.running_mean"] *= factor
    tensors["trunk.norms.bn1.running_var"] *= factor * factor
    save_file(tensors, path, metadata=meta)
    facts = json.loads((run / "checkpoint" / "checkpoint.json").read_text())
    facts["model_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (run / "checkpoint" / "checkpoint.json").write_text(json.dumps(facts))
    return run


def test_an_export_says_which_layers_stay_float32(overflowing: Path, tmp_path: Path) -> None:
    output = tmp_path / "m.prunion"
    arguments = ["export", str(overflowing), "-o", str(output), "--fp16", "--uint8"]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    (line, again) = (x for x in done.output.splitlines() if "float16 ends at 65504" in x)
    assert "conv1 (" in line and again == line
    bundle = open_bundle(output)
    verified = bundle.manifest.verified
    assert verified is not None
    assert list(verified.variants["fp16"].float32_layers) == ["conv1"]
    assert verified.variants["fp32-uint8"].float32_layers == {}
    black = -np.array(bundle.manifest.input.mean) / bundle.manifest.input.std
    image = np.broadcast_to(black.astype(np.float32).reshape(1, 3, 1, 1), (2, 3, 16, 16)).copy()
    feeds = {"image": image, "domain": np.array([0, 1])}
    graphs = [onnx.load(bundle.graph(kind)) for kind in ("fp32", "fp16")]
    expected, got = (ReferenceEvaluator(g).run(["logits"], feeds)[0] for g in graphs)
    assert off(expected, got) < 1e-2
    # The same of every form that the runtime opens.
    form, table = form_of(bundle, "fp16"), bundle.unit_table()
    for row, name in enumerate(bundle.domains):
        pack = bundle.pack(name)
        alive = table.round_up(pack.switches, 8)
        for cut in ((form.unit_table(table), alive),) if row else ((),):
            pinned = onnx.load_from_string(
                pin_form(bundle.held_graph("fp16").read(), form, pack, *cut)
            )
            (own,) = ReferenceEvaluator(pinned).run(["logits"], {"image": image[:1]})
            assert off(expected[row : row + 1, : own.shape[1]], own) < 1e-2
            open_graph(pinned.SerializeToString())
