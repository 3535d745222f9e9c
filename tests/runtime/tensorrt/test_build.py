"""Engines are built for real by TensorRT-RTX, which needs no GPU for it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from prunion.runtime.base import install_hint, sha256_file
from prunion.runtime.bundle import open_bundle
from prunion.runtime.errors import (
    BundleError,
    InputError,
    MissingDependencyError,
    PrunionError,
    UnsupportedGraphError,
)
from prunion.runtime.graph import inputs_without_defaults
from prunion.runtime.tensorrt import BuildOptions, build_engine
from prunion.runtime.tensorrt import build as tensorrt_build
from tests.support.parsed import check_parses

onnx = pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def rtx() -> ModuleType:
    return pytest.importorskip("tensorrt_rtx", reason="needs prunion[tensorrt-rtx]")


def test_engine_and_its_key(
    bundle_path: Path, tmp_path: Path, rtx: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = build_engine(open_bundle(bundle_path), sms=[86, 89], options=BuildOptions((1, 4, 8)))
    assert result.path.name == "toy.tensorrt-rtx.sm86.sm89.fp32.engine"
    assert result.path.stat().st_size > 1000
    key = json.loads(result.key_path.read_text("utf-8"))
    assert key["graph_sha256"] == sha256_file(bundle_path / "model.onnx")
    assert key["library_version"] == rtx.__version__
    assert (key["sms"], key["batch"], key["domains"]) == ([86, 89], [1, 4, 8], [1, 3, 64])
    with pytest.raises(PrunionError, match=r"already exists.*--force"):
        build_engine(open_bundle(bundle_path), sms=[86, 89])
    build_engine(open_bundle(bundle_path), sms=[86, 89], force=True)


def test_the_bundle_is_left_alone(bundle_path: Path, rtx: ModuleType) -> None:
    with pytest.raises(InputError, match="inside the bundle"):
        build_engine(open_bundle(bundle_path), sms=[86], output=bundle_path / "x.engine")


def test_unknown_gpu_and_target(bundle_path: Path, tmp_path: Path, rtx: ModuleType) -> None:
    bundle = open_bundle(bundle_path)
    with pytest.raises(InputError, match=r"does not build for sm 87: it knows 75, 80, 86"):
        build_engine(bundle, sms=[87], output=tmp_path / "x.engine")
    with pytest.raises(InputError, match="no target 'tpu'"):
        build_engine(bundle, target="tpu")
    with pytest.raises(BundleError, match="no int8 graph"):
        build_engine(bundle, precision="int8")
    assert not list(tmp_path.iterdir())


def test_missing_library_is_one_line(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    with pytest.raises(MissingDependencyError, match=re.escape(install_hint("tensorrt"))):
        build_engine(open_bundle(bundle_path), target="tensorrt")


def test_parser_accepts_the_graph_as_it_is(bundle_path: Path, rtx: ModuleType) -> None:
    check_parses(bundle_path / "model.onnx")


def test_a_refused_graph_names_its_node(tmp_path: Path, rtx: ModuleType) -> None:
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    node = helper.make_node("Nonsense", ["x"], ["y"], name="odd", domain="nowhere")
    values = [helper.make_tensor_value_info(name, kind, [1]) for name in "xy"]
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("nowhere", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets), tmp_path / "x.onnx")
    with pytest.raises(UnsupportedGraphError, match=r"refuses the graph: node 'odd' \(Nonsense\)"):
        check_parses(tmp_path / "x.onnx")


def test_tables_become_inputs(bundle_path: Path) -> None:
    model = onnx.load_from_string(inputs_without_defaults(bundle_path / "model.onnx"))
    names = {tensor.name for tensor in model.graph.initializer}
    assert not names & {"bank", "head_weight", "head_bias"}
    assert "conv.weight" in names


def test_the_engine_takes_its_tables_as_inputs(
    bundle_path: Path, tmp_path: Path, rtx: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: dict[str, tuple[int, ...]] = {}
    original = tensorrt_build._shape_profile

    def spy(builder: Any, network: Any, key: Any, heads: str) -> Any:
        inputs = (network.get_input(i) for i in range(network.num_inputs))
        shapes.update({x.name: tuple(x.shape) for x in inputs})
        return original(builder, network, key, heads)

    monkeypatch.setattr(tensorrt_build, "_shape_profile", spy)
    build_engine(open_bundle(bundle_path), sms=[120], output=tmp_path / "x.engine")
    assert shapes == {
        "image": (-1, 3, 12, 10),
        "domain": (-1,),
        "bank": (-1, 16),
        "head_weight": (-1, 8, -1),
        "head_bias": (-1, -1),
    }
