"""Profiles: layers measured for real, the file checked, widths chosen."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from prunion.runtime.backends import make_ort_session, run
from prunion.runtime.bundle import (
    Profile,
    fit_total,
    monotone,
    open_bundle,
    read_profile,
    write_profile,
)
from prunion.runtime.cli import cli
from prunion.runtime.errors import BackendError, BudgetError, UnsupportedGraphError
from prunion.runtime.measure import profile_bundle
from prunion.runtime.measure.profile import (
    profile_warning,
    sample_unions,
    widths_to_measure,
)
from prunion.runtime.measure.profile_layers import GraphLayer, layer_graph

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module", autouse=True)
def _few_calls_of_whole_networks() -> Iterator[None]:
    """How well a profile predicts is not asked here; whole networks are most of its time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prunion.runtime.measure.profile.WHOLE", 4)
        yield


@pytest.fixture(scope="module")
def measured(bundle_path: Path) -> Profile:
    return profile_bundle(open_bundle(bundle_path), seconds=0.002)


def test_a_pruned_bundle_is_told(bundle_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No run has its widths, so what was measured is of no use to a budget."""

    def stopped(_: str) -> None:
        raise KeyboardInterrupt

    with caplog.at_level("WARNING", "prunion"), pytest.raises(KeyboardInterrupt):
        profile_bundle(open_bundle(bundle_path), step=stopped)
    (line,) = caplog.messages
    assert "is pruned (216 of 432 parameters)" in line and "--untrained" in line


def test_a_real_profile_is_written_and_read_back(measured: Profile, tmp_path: Path) -> None:
    assert list(measured.layers) == ["conv.weight"]
    assert measured.provider == "CPUExecutionProvider"
    assert measured.grids[0].out == (1, 2, 3, 4, 6, 8)
    assert measured.grids[0].inside == (3,)
    assert measured.grids[0].ms[-1, 0] > 0
    write_profile(tmp_path / "device.json", measured)
    again = read_profile(tmp_path / "device.json")
    assert again.to_json() == measured.to_json()


def test_the_prediction_uses_the_widths_that_are_left(measured: Profile, bundle_path: Path) -> None:
    table = open_bundle(bundle_path).unit_table()
    alive = np.arange(table.count) < 5
    grid, fit = measured.grids[0], measured.fit
    between = (grid.ms[3, 0] + grid.ms[4, 0]) / 2  # 5 lies halfway between 4 and 6
    assert measured.milliseconds(table, alive) == pytest.approx(fit.scale * between + fit.constant)


def test_the_command_writes_a_file_once(bundle_path: Path, tmp_path: Path) -> None:
    output = tmp_path / "device.json"
    arguments = ["profile", str(bundle_path), "-o", str(output), "--seconds", "0.001"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    assert "1 layers, 1 of them different, 6 widths" in result.output
    again = CliRunner().invoke(cli, arguments)
    assert again.exit_code == 1
    assert "already exists" in again.output
    forced = CliRunner().invoke(cli, [*arguments, "--force", "--json"])
    assert forced.exit_code == 0
    text = forced.stdout[forced.stdout.index("{") :]
    assert json.loads(text) == json.loads(output.read_text("utf-8"))


def test_what_was_measured_is_told_before_it_is_written(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    arguments = ["profile", str(bundle_path), "-o", str(tmp_path / "x"), "--seconds", "0.001"]
    monkeypatch.setattr(os, "fsync", full)
    result = CliRunner().invoke(cli, [*arguments, "--json"])
    assert result.exit_code == 1 and "x cannot be written (No space left" in result.stderr
    assert json.loads(result.stdout)["grids"]


def test_widths_between_the_kernels_steps_are_named_and_else_the_load(
    measured: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not profile_warning(replace(measured, fit=replace(measured.fit, worst_error=0.05)))
    far = replace(measured, fit=replace(measured.fit, worst_error=0.2), round_to=8)
    monkeypatch.setattr("prunion.runtime.measure.profile.block_of", lambda backend: 16)
    assert "cpu takes 16 channels at a time here" in profile_warning(far)
    assert "set [budget] round_to = 16" in profile_warning(far)
    assert "other load" in profile_warning(replace(far, round_to=32))


def test_a_network_that_cannot_be_cut_is_told_what_else_there_is(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prunion.runtime.graph.channels.PASS", frozenset())
    with pytest.raises(UnsupportedGraphError, match=r"Relu is not in the table.*such as macs"):
        profile_bundle(open_bundle(bundle_path), seconds=0.002)


def test_an_engine_backend_is_refused(bundle_path: Path) -> None:
    for backend in ("tensorrt", "tensorrt-ep"):
        with pytest.raises(BackendError, match="use cpu, cuda or openvino"):
            profile_bundle(open_bundle(bundle_path), backend=backend)


def test_openvino_answers_the_same_graphs(bundle_path: Path) -> None:
    pytest.importorskip("openvino")
    profile = profile_bundle(open_bundle(bundle_path), backend="openvino", seconds=0.001)
    assert profile.provider.startswith("OpenVINO")


@pytest.mark.parametrize(
    ("size", "stride", "round_to", "widths"),
    [
        (64, 1, 16, (16, 32, 48, 64)),
        (24, 1, 16, (16, 24)),
        (8, 1, 16, (8,)),
        (64, 0, 16, (64,)),
        (1, 0, 1, (1,)),
        (960, 1, 16, (16, 128, 240, 384, 592, 960)),
        (160, 10, 8, (80, 160)),  # ten groups
        (400, 25, 1, (25, 75, 125, 200, 275, 400)),
    ],
)
def test_measured_widths(size: int, stride: int, round_to: int, widths: tuple[int, ...]) -> None:
    assert widths_to_measure(size, stride, round_to) == widths


@pytest.mark.parametrize(
    ("layer", "out", "inside", "image", "weight"),
    [
        (GraphLayer("dense", (8, 4, 3, 3), (1, 1), 1, (6, 6), ()), 5, 3, 3, [5, 3, 3, 3]),
        (
            GraphLayer("depthwise", (8, 1, 3, 3), (1, 0), 8, (6, 6), ()),
            5,
            1,
            5,
            [5, 1, 3, 3],
        ),
        (GraphLayer("dense", (8, 4, 1, 1), (1, 1), 1, (6, 6), (), 4), 5, 3, 3, [5, 3, 1, 1]),
        (GraphLayer("grouped", (8, 2, 1, 1), (1, 1), 2, (6, 6), ()), 4, 1, 2, [4, 1, 1, 1]),
        (GraphLayer("linear", (8, 4), (1, 1), 1, (), ()), 5, 3, 3, [5, 3]),
        (GraphLayer("tokens", (8, 4), (1, 1), 1, (49,), ()), 5, 3, 3, [3, 5]),
        (GraphLayer("transposed", (8, 4, 2, 2), (1, 1), 1, (6, 6), ()), 5, 3, 5, [5, 3, 2, 2]),
        (
            GraphLayer("transposed", (8, 1, 2, 2), (1, 0), 8, (6, 6), ()),
            5,
            1,
            5,
            [5, 1, 2, 2],
        ),
    ],
)
def test_one_layer_graphs_are_valid_and_of_the_asked_widths(
    layer: GraphLayer, out: int, inside: int, image: int, weight: list[int]
) -> None:
    model = onnx.load_from_string(layer_graph(layer, out, inside, batch=2, copies=3))
    onnx.checker.check_model(model, full_check=True)
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    assert shape == [2 * layer.parts, *layer.image_at(out, inside)]
    assert image in shape[1:]
    weights = [list(x.dims) for x in model.graph.initializer if x.name.startswith("weight")]
    assert weights == [weight] * 3
    session = make_ort_session(model.SerializeToString(), needs={"image"})
    run(session, {"image": np.ones(shape, np.float32)})


def test_samples_start_with_everything_and_differ(bundle_path: Path) -> None:
    table = open_bundle(bundle_path).unit_table()
    unions = sample_unions(table, 1)
    assert unions[0].all()
    assert all(alive.any() for alive in unions)
    assert len({alive.sum() for alive in unions}) > 3


def test_noise_never_makes_a_wider_layer_cheaper() -> None:
    ms = monotone(np.array([[-1.0, 3.0, 2.0], [1.0, 2.0, 5.0]]))
    assert ms.tolist() == [[0, 3, 3], [1, 3, 5]]


def test_the_fit_finds_scale_and_constant_and_its_own_error() -> None:
    layers = np.array([1.0, 2.0, 4.0, 8.0])
    exact = fit_total(layers, 1.25 * layers + 0.5)
    assert (exact.scale, exact.constant) == (pytest.approx(1.25), pytest.approx(0.5))
    assert exact.worst_error < 1e-9
    off = fit_total(layers, np.array([1.0, 2.0, 4.0, 16.0]))
    assert off.worst_error > 0.3
    assert fit_total(layers, 2 * layers - 0.5).constant == 0  # never below zero


def damage(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda value: value.update(changes)


def negative(value: dict[str, Any]) -> None:
    value["grids"][0]["ms"][0][0] = -1.0


def falling(value: dict[str, Any]) -> None:
    value["grids"][0]["ms"][-1][0] = 0.0


def ragged(value: dict[str, Any]) -> None:
    value["grids"][0]["ms"].pop()


def not_a_number(value: dict[str, Any]) -> None:
    value["fit"]["scale"] = float("nan")


def nowhere(value: dict[str, Any]) -> None:
    value["layers"][0]["grid"] = 9


def unsorted(value: dict[str, Any]) -> None:
    value["grids"][0]["out"][0] = 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (damage(format_version=2), "format_version is not 1"),
        (damage(batch=0), "batch is 0, outside"),
        (damage(layers=[]), "layers is incomplete"),
        (damage(layers="conv"), "layers must be a list"),
        (negative, r"grids\[0\].ms must be 0 or more"),
        (falling, "never fall where a layer gets wider"),
        (ragged, r"grids\[0\].ms must be 6 rows of 1 numbers"),
        (not_a_number, "fit.scale must be a finite number"),
        (nowhere, r"layers\[0\].grid is 9, outside"),
        (unsorted, r"grids\[0\].out must be widths that grow"),
    ],
)
def test_a_damaged_profile_is_refused_in_one_line(
    measured: Profile, tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    value = json.loads(json.dumps(measured.to_json()))
    change(value)
    file = tmp_path / "device.json"
    file.write_text(json.dumps(value), "utf-8")
    with pytest.raises(BudgetError, match=message) as caught:
        read_profile(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_profile_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="does not exist"):
        read_profile(tmp_path / "none.json")
