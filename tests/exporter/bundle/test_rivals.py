"""The unpruned network that a bundle is compared with: its checkpoint's, or of its backbone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from prunion.exporter.bundle import export_bundle, write_unpruned_of
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
