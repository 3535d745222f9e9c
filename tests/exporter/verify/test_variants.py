"""Every tensor and node of a variant is that of the graph which it was made of."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from prunion.exporter.graph import make_probe, onnx_graph
from prunion.exporter.graph.variants.int8 import _quantise
from prunion.exporter.slim import slim_network
from prunion.exporter.verify import verify_bundle
from prunion.exporter.verify.int8_again import measure_int8_again
from prunion.exporter.verify.variants import check_variant, differences
from prunion.runtime.bundle import open_bundle
from prunion.runtime.errors import BundleError
from prunion.trainer.network import load_checkpoint
from tests.exporter.slim.test_network import switch_off
from tests.exporter.verify.test_report import edit_tensor, rehash
from tests.support.networks.small import Plain, domain_net

VARIANTS = ("fp16", "int8", "fp32-uint8", "fp16-uint8", "int8-uint8")
ALL = ("fp32", *VARIANTS)


@pytest.fixture
def copy(eight: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(eight, tmp_path / "copy.prunion"))


def edited(copy: Path, variant: str, change: Callable[[onnx.ModelProto], Any]) -> list[str]:
    """What is found of a variant that was changed, from its numbers alone."""
    path = copy / f"model.{variant}.onnx"
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)
    rehash(copy)
    return list(check_variant(open_bundle(copy), variant, ALL))


def each_changed(model: onnx.ModelProto) -> Iterator[str]:
    """The names of its tensors, each while one of its numbers is another."""
    for tensor in model.graph.initializer:
        before = tensor.SerializeToString()
        value = numpy_helper.to_array(tensor).copy().reshape(-1)
        middle = len(value) // 2
        if value.dtype.kind == "f":
            value[middle] = 0.5 if np.isinf(value[middle]) else 2 * abs(value[middle]) + 0.125
        else:
            value[middle] = -value[middle] or 50
        shape = tuple(tensor.dims)
        tensor.CopyFrom(numpy_helper.from_array(value.reshape(shape), tensor.name))
        yield tensor.name
        tensor.ParseFromString(before)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_number_is_held_against_the_graph_that_it_is_of(eight: Path, variant: str) -> None:
    bundle = open_bundle(eight)
    assert list(check_variant(bundle, variant, ALL)) == []
    model = onnx.load(eight / f"model.{variant}.onnx")
    base = onnx.load(eight / bundle.manifest.graphs[source_of(variant)])
    missed = [x for x in each_changed(model) if not any(differences(bundle, variant, base, model))]
    assert [x for x in missed if not x.endswith("_scale")] == []
    assert bool(missed) == (variant == "int8"), "what only calibration images tell"


def source_of(variant: str) -> str:
    return variant.removesuffix("-uint8") if variant.endswith("-uint8") else "fp32"


@pytest.mark.parametrize("how", ["zero", "shuffled", "negative"])
def test_int8_weights_of_another_network_do_not_hold(copy: Path, tiny: Path, how: str) -> None:
    def change(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            if tensor.name.endswith("_quantized"):
                value = numpy_helper.to_array(tensor)
                flat = np.random.default_rng(0).permutation(value.reshape(-1))
                made = {"zero": 0 * value, "shuffled": flat.reshape(value.shape)}
                new = made.get(how, -value)
                tensor.CopyFrom(numpy_helper.from_array(new, tensor.name))

    first, *_, last = edited(copy, "int8", change)
    assert first == "its eight bits of conv1.weight are not those of the fp32 graph"
    assert last.startswith("and ")
    assert list(check_variant(open_bundle(copy), "int8-uint8", ALL)) != []


@pytest.mark.parametrize(
    ("variant", "other", "said"),
    [
        ("fp16", "model.onnx", "conv1.weight is float32, and the manifest says of no such layer"),
        ("int8", "model.onnx", "it holds no eight bits of conv1.weight"),
        ("int8", "model.fp16.onnx", "it holds no eight bits of conv1.weight"),
        ("int8-uint8", "model.fp32-uint8.onnx", "unlike the int8 graph"),
        ("fp16-uint8", "model.fp32-uint8.onnx", "is not that of the fp16 graph"),
    ],
)
def test_a_file_of_another_precision_does_not_hold(
    copy: Path, variant: str, other: str, said: str
) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.CopyFrom(onnx.load(copy / other))

    assert any(said in problem for problem in edited(copy, variant, change))


def test_a_node_that_computes_otherwise_does_not_hold(copy: Path, eight: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        pool = next(n for n in model.graph.node if n.op_type == "MaxPool")
        next(x for x in pool.attribute if x.name == "pads").ints[0] = 0

    for variant in VARIANTS:
        (said,) = edited(copy, variant, change)
        assert said.startswith("it computes max_pool2d otherwise than the ")
        shutil.copy(eight / f"model.{variant}.onnx", copy)


def test_ranges_that_rows_are_divided_by_do_not_hold(copy: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        next(n for n in model.graph.node if "bank_ranges" in n.input).op_type = "Div"

    assert any("it computes" in problem for problem in edited(copy, "int8", change))


def test_the_graph_that_all_are_held_against_is_missed(copy: Path) -> None:
    (copy / "model.onnx").unlink()
    path = copy / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["graphs"]["fp32"], manifest["files"]["model.onnx"]
    path.write_text(json.dumps(manifest))
    (said, *_) = verify_bundle(copy).problems
    assert "lists no fp32 graph, which its trunk's hash is of" in said
    del manifest["graphs"]["int8"]
    path.write_text(json.dumps(manifest))
    (said,) = check_variant(open_bundle(copy), "int8-uint8", ALL)
    assert said.startswith("there is no int8 graph, of which it was made")


def test_no_two_precisions_are_one_file(copy: Path) -> None:
    rehash(copy, lambda manifest: manifest["graphs"].update(fp16="model.onnx"))
    with pytest.raises(BundleError, match=r"graphs\.fp16 is 'model\.onnx', another precision's"):
        open_bundle(copy)


def test_steps_of_activations_are_those_of_the_images(copy: Path, tiny: Path) -> None:
    edit_tensor(copy / "model.int8.onnx", "image_scale", put_double)
    rehash(copy)
    again = measure_int8_again(open_bundle(copy), {"fp32", "int8"}, load_checkpoint(tiny))
    assert "int8 graph: its image_scale is not what 4 images give" in again.problems


def test_what_nothing_reads_is_not_missed(eight: Path) -> None:
    """The quantiser drops it; graphs of opset 17 hold the axes of their reductions still."""
    bundle = open_bundle(eight)
    base, model = (onnx.load(eight / x) for x in ("model.onnx", "model.int8.onnx"))
    base.graph.initializer.append(numpy_helper.from_array(np.array([2, 3]), "axes"))
    assert list(differences(bundle, "int8", base, model)) == []


class Twice(Plain):
    """A convolution with a bias that answers twice."""

    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.again(self.bn1(self.conv1(x)).relu()).relu()
        return self.bn2(self.conv2(self.again(x))).relu().mean((2, 3))


def test_a_bias_that_is_read_twice_is_two_in_eight_bits(eight: Path, tmp_path: Path) -> None:
    base = onnx_graph(slim_network(switch_off(domain_net(Twice(), (3, 5)))), 8, 8)
    onnx.save(base, tmp_path / "model.onnx")
    probe = make_probe(8, (8, 8), (0.5,) * 3, (0.2,) * 3, domains=2)
    batch = {"image": probe.images, "domain": probe.domains}
    _quantise(tmp_path / "model.onnx", tmp_path / "int8.onnx", [batch], "float32")
    model, bundle = onnx.load(tmp_path / "int8.onnx"), open_bundle(eight)
    assert list(differences(bundle, "int8", base, model)) == []
    (copy,) = (x for x in model.graph.initializer if x.name == "again.bias0")
    copy.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(copy), copy.name))
    assert "it holds again.bias0, unlike the fp32 graph" in [
        *differences(bundle, "int8", base, model)
    ]


def put_double(value: np.ndarray) -> None:
    value *= 2
