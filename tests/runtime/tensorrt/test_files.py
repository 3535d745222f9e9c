"""Engines are used only for what they were built from, and trtexec is told the same."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from prunion.runtime.base import write_json
from prunion.runtime.bundle import open_bundle
from prunion.runtime.cli import cli
from prunion.runtime.errors import EngineError
from prunion.runtime.tensorrt import EngineKey, engine_key, engine_name, staleness, write_engine
from prunion.runtime.tensorrt.files import key_place, read_engine

onnx = pytest.importorskip("onnx")


@pytest.fixture
def key(bundle_path: Path) -> EngineKey:
    return engine_key(open_bundle(bundle_path), "tensorrt", "10.3.0", sms=[87])


@pytest.fixture
def engine(tmp_path: Path, key: EngineKey) -> Path:
    path = tmp_path / "x.engine"
    write_engine(path, key, b"engine" * 100)
    return path


def test_generations_are_a_set(bundle_path: Path, key: EngineKey) -> None:
    opened = open_bundle(bundle_path)
    assert engine_key(opened, "tensorrt", "10.3.0", sms=[87, 87]) == key
    assert engine_key(opened, "tensorrt", "10.3.0", sms=[89, 86, 89]).sms == (86, 89)


def test_an_engine_is_read_for_its_own_key(engine: Path, key: EngineKey) -> None:
    assert staleness(engine, key) == ""
    assert read_engine(engine, key) == b"engine" * 100


@pytest.mark.parametrize(
    "change",
    [
        {"library_version": "10.4.0"},
        {"graph_sha256": "0" * 64},
        {"sms": (110,)},
        {"precision": "fp16"},
        {"batch": (1, 4, 16)},
        {"target": "tensorrt-rtx"},
    ],
)
def test_another_key_makes_it_stale(engine: Path, key: EngineKey, change: dict[str, Any]) -> None:
    other = dataclasses.replace(key, **change)
    assert next(iter(change)) in staleness(engine, other)
    assert engine_name(other) != engine_name(key)
    with pytest.raises(EngineError, match=r"cannot be used.*prunion build"):
        read_engine(engine, other)


def test_whoever_is_stopped_between_engine_and_key_leaves_the_old_or_the_new(
    engine: Path, key: EngineKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stopped_before in (1, 2, 3):
        write_engine(engine, key, b"old")
        calls = []

        def stop(path: Path, value: object, calls: list[int] = calls, at: int = stopped_before):
            calls.append(1)
            if len(calls) == min(at, 2):
                raise KeyboardInterrupt
            return write_json(path, value)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("prunion.runtime.tensorrt.files.write_json", stop)
            if stopped_before == 3:
                patch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            write_engine(engine, key, b"new")
        assert read_engine(engine, key) in (b"old", b"new")
        assert not staleness(engine, key)


def test_damage_is_named(engine: Path, key: EngineKey) -> None:
    data = engine.read_bytes()
    for damaged in (data[:-1], b"x" + data[1:], b""):
        engine.write_bytes(damaged)
        with pytest.raises(EngineError, match="truncated or altered"):
            read_engine(engine, key)
    key_place(engine).write_text("{")
    with pytest.raises(EngineError, match="cannot be read"):
        read_engine(engine, key)
    key_place(engine).unlink()
    with pytest.raises(EngineError, match="copy it beside the engine"):
        read_engine(engine, key)
    engine.unlink()
    with pytest.raises(EngineError, match="does not exist"):
        read_engine(engine, key)
    assert staleness(engine, key) == "there is no engine yet"


def test_trtexec_line_fits_the_graph_it_comes_with(bundle_path: Path, tmp_path: Path) -> None:
    engine = tmp_path / "toy.engine"
    arguments = ["build", bundle_path, "--target", "tensorrt", "--batch", "1,4,16", "-o", engine]
    result = CliRunner().invoke(cli, [*map(str, arguments), "--print-trtexec"])
    assert result.exit_code == 0, result.output
    program, *options = shlex.split(result.stdout)
    assert program == "trtexec"
    values = dict(option.removeprefix("--").split("=", 1) for option in options)
    assert values["saveEngine"] == str(engine)
    graph = onnx.load(values["onnx"]).graph
    assert not {x.name for x in graph.initializer} & {"bank", "head_weight", "head_bias"}
    for option, batch in (("minShapes", 1), ("optShapes", 4), ("maxShapes", 16)):
        shapes = dict(part.split(":") for part in values[option].split(","))
        assert shapes["image"] == f"{batch}x3x12x10"
        assert shapes["domain"] == str(batch)
        for value in graph.input:
            sizes = [int(n) for n in shapes[value.name].split("x")]
            fixed = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            assert len(sizes) == len(fixed)
            assert all(f in (0, n) for n, f in zip(sizes, fixed, strict=True)), value.name
    assert "--skipInference" not in options
    again = CliRunner().invoke(cli, [*map(str, arguments), "--print-trtexec"])
    assert "already exists" in again.stderr


def test_the_line_for_turing_comes_with_turings_graph(bundle_path: Path, tmp_path: Path) -> None:
    engine = tmp_path / "toy.engine"
    arguments = ["build", bundle_path, "--target", "tensorrt-rtx", "--sm", 75, "-o", engine]
    result = CliRunner().invoke(cli, [*map(str, arguments), "--print-trtexec"])
    program, *options = shlex.split(result.stdout)
    assert program == "tensorrt_rtx"
    assert {"--computeCapabilities=75", "--skipInference"} <= set(options)
    nodes = {node.op_type for node in onnx.load(str(engine.with_suffix(".onnx"))).graph.node}
    assert "MatMul" not in nodes
    assert "ReduceSum" in nodes
