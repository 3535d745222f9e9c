"""The unpruned network that a bundle is compared with: its checkpoint's, or of its backbone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner, Result

from prunion.exporter.bundle import export_bundle, write_torch_pruned, write_unpruned_of
from prunion.runtime.bundle import open_bundle
from prunion.runtime.cli import cli
from prunion.runtime.errors import InputError
from prunion.runtime.graph import input_shapes


@pytest.fixture(scope="module")
def bundle(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rivals") / "tiny.prunion"
    export_bundle(tiny, path)
    return path


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(x) for x in arguments])


def test_both_ways_write_the_same_shapes(tiny: Path, bundle: Path, tmp_path: Path) -> None:
    of_run = write_unpruned_of(bundle, tiny, tmp_path / "a.onnx")
    of_bundle = write_unpruned_of(bundle, None, tmp_path / "b.onnx")
    assert input_shapes(of_run) == input_shapes(of_bundle)
    assert input_shapes(of_run)["bank"][1] >= input_shapes(bundle / "model.onnx")["bank"][1]


def test_another_networks_checkpoint_is_refused(tiny: Path, bundle: Path, tmp_path: Path) -> None:
    export_bundle(tiny, tmp_path / "one.prunion")
    manifest = json.loads((tmp_path / "one.prunion" / "manifest.json").read_text("utf-8"))
    manifest["input"]["height"] = 24
    (tmp_path / "one.prunion" / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(InputError, match="give the one that it was exported from"):
        write_unpruned_of(tmp_path / "one.prunion", tiny, tmp_path / "x.onnx")


def test_a_bundle_that_tells_no_backbone_needs_its_checkpoint(bundle: Path, tmp_path: Path) -> None:
    silent = tmp_path / "silent.prunion"
    silent.mkdir()
    for file in bundle.rglob("*"):
        if file.is_file():
            (silent / file.relative_to(bundle)).parent.mkdir(parents=True, exist_ok=True)
            (silent / file.relative_to(bundle)).write_bytes(file.read_bytes())
    manifest = json.loads((silent / "manifest.json").read_text("utf-8"))
    manifest["provenance"]["config"]["backbone"]["source"] = "python"
    (silent / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(InputError, match="with --checkpoint"):
        write_unpruned_of(silent, None, tmp_path / "x.onnx")


def test_the_command_times_the_unpruned_network(tiny: Path, bundle: Path) -> None:
    arguments = ("--batch", "2", "--duration", "20ms", "--threads", 1, "--json")
    rivals = ("--against", "backbone", "--against", "separate", "--checkpoint", tiny)
    result = invoke("bench", bundle, *arguments, *rivals)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert {"backbone", "separate"} < {row["session"] for row in report["rows"]}
    assert {x["session"] for x in report["fresh"]} == {row["session"] for row in report["rows"]}
    assert report["rival_bytes"]["separate"] > report["rival_bytes"]["backbone"]
    assert report["notes"] == []


def test_torch_pruning_cuts_networks_of_their_own(tiny: Path, bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch_pruning", reason="needs prunion[bench]")
    manifest = open_bundle(bundle).manifest
    trunk = manifest.params["exported"]
    for rival, most in (
        ("separate-pruned", trunk),
        ("separate-pruned-total", trunk / len(manifest.domains)),
        ("torch-pruning", trunk),
    ):
        paths = write_torch_pruned(bundle, tiny, rival, tmp_path)
        classes = [len(x.classes) for x in manifest.domains]
        if rival == "torch-pruning":
            classes = [sum(classes)]
        assert len(paths) == len(classes)
        for path, count in zip(paths, classes, strict=True):
            graph = onnx.load(path).graph
            weights = {x.name: x.dims for x in graph.initializer if len(x.dims) in (2, 4)}
            assert weights.pop("head.weight")[0] == count
            assert 0.2 * most <= sum(np.prod(x) for x in weights.values()) <= most, rival
            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            side = (manifest.input.height, manifest.input.width)
            image = np.zeros((3, 3, *side), np.float32)
            assert session.run(None, {"image": image})[0].shape == (3, count)


@pytest.mark.parametrize("fresh", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_command_times_networks_pruned_alone(
    tiny: Path, bundle: Path, fresh: bool, request: pytest.FixtureRequest
) -> None:
    if not fresh:
        request.getfixturevalue("nothing_fresh")
    pytest.importorskip("torch_pruning", reason="needs prunion[bench]")
    arguments = ("--batch", "2", "--duration", "20ms", "--threads", 1, "--json")
    names = ("separate-pruned", "separate-pruned-total", "torch-pruning")
    rivals = [x for name in names for x in ("--against", name)]
    result = invoke("bench", bundle, *arguments, *rivals, "--checkpoint", tiny)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert set(names) < {row["session"] for row in report["rows"]}
    assert {x["session"] for x in report["fresh"]} == {row["session"] for row in report["rows"]}
    sizes = report["rival_bytes"]
    assert sizes["separate-pruned-total"] < sizes["separate-pruned"]
    compared = {(x["session"], x["against"]) for x in report["comparisons"]}
    assert {("mixed", name) for name in names} < compared
    assert report["notes"] == []
