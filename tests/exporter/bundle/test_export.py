"""A bundle from a checkpoint: contract, promise, refusals."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from prunion.exporter.bundle import export_bundle, write_unpruned
from prunion.exporter.bundle.manifest import image_input
from prunion.exporter.bundle.packs import write_packs
from prunion.runtime import load
from prunion.runtime.base import write_json
from prunion.runtime.base.files import exchange
from prunion.runtime.bundle import Manifest, Pack, load_manifest, open_bundle, read_pack
from prunion.runtime.errors import (
    BudgetError,
    BundleError,
    InputError,
    PrunionError,
    VerificationError,
)
from prunion.trainer.config import InputConfig, load_config
from prunion.trainer.data import eval_transform, open_domain
from prunion.trainer.network import load_checkpoint
from prunion.trainer.run import train_run
from tests.support.tiny_run import tiny_run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("export")
    train_run(load_config(tiny_run(folder)), folder / "run")
    export_bundle(folder / "run", folder / "tiny.prunion")
    return folder / "run", folder / "tiny.prunion"


def weights_in(graph: onnx.ModelProto) -> int:
    """Weights of convolutions and linear layers, counted from the nodes that read them."""
    tables = {"bank", "head_weight", "head_bias"}
    values = {i.name: numpy_helper.to_array(i) for i in graph.graph.initializer}
    read = {n.input[1] for n in graph.graph.node if n.op_type in ("Conv", "Gemm", "MatMul")}
    return sum(values[name].size for name in read & values.keys() - tables)


def test_the_budget_holds_in_the_onnx_file(made: tuple[Path, Path]) -> None:
    run, bundle = made
    manifest = json.loads((bundle / "manifest.json").read_text())
    graph = onnx.load(bundle / "model.onnx")
    full = load_config(run.parent / "run.toml").backbone
    from torchvision.models import get_model

    backbone = get_model(full.name, weights=None)
    stem = [backbone.conv1, *backbone.layer1.modules()]
    expected = sum(m.weight.numel() for m in stem if isinstance(m, torch.nn.Conv2d))
    assert manifest["params"]["backbone"] == expected
    assert manifest["params"]["exported"] == weights_in(graph)
    assert weights_in(graph) <= 0.5 * expected
    assert manifest["budget"] == {
        "kind": "params",
        "asked": 0.5,
        "value": pytest.approx(weights_in(graph) / expected),
        "backbone": expected,
        "met": True,
    }


def test_the_graph_has_the_names_and_defaults_others_read(made: tuple[Path, Path]) -> None:
    graph = onnx.load(made[1] / "model.onnx").graph
    assert [i.name for i in graph.input] == [
        "image", "domain", "bank", "head_weight", "head_bias"
    ]  # fmt: skip
    assert [o.name for o in graph.output] == ["logits"]
    assert {"bank", "head_weight", "head_bias"} <= {i.name for i in graph.initializer}
    assert "If" not in {n.op_type for n in graph.node}
    onnx.checker.check_model(onnx.load(made[1] / "model.onnx"), full_check=True)


def test_tensorrt_parses_the_graph(made: tuple[Path, Path]) -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install 'prunion[tensorrt-rtx]'")
    from tests.support.parsed import check_parses

    check_parses(made[1] / "model.onnx")


def test_the_runtime_answers_like_training_from_the_image_file_on(
    made: tuple[Path, Path],
) -> None:
    run, bundle = made
    model, loaded = load(bundle), load_checkpoint(run)
    transform = eval_transform(loaded.config.input)
    for index, domain in enumerate(loaded.config.domains):
        images = open_domain(domain, 0).test
        for row in range(0, len(images), 5):
            image = images.image(row)
            with torch.no_grad():
                logits = loaded.net.logits(transform(image)[None], torch.tensor([index]))
            (answer,) = model.predict([image], domain=domain.name)
            assert answer.index == int(logits.argmax())
            expected = float(torch.softmax(logits, 1).max())
            assert answer.probability == pytest.approx(expected, abs=1e-4)


def test_what_inspect_prints_is_the_manifest(made: tuple[Path, Path]) -> None:
    from click.testing import CliRunner

    from prunion.runtime.cli import cli

    result = CliRunner().invoke(cli, ["inspect", str(made[1]), "--json"])
    assert result.exit_code == 0
    assert json.loads(result.output) == json.loads((made[1] / "manifest.json").read_text())


def test_the_manifest_says_how_images_were_turned(made: tuple[Path, Path], tmp_path: Path) -> None:
    assert load_manifest(made[1] / "manifest.json").input.orientation == "exif"
    older = shutil.copytree(made[0] / "checkpoint", tmp_path / "older")
    meta = json.loads((older / "checkpoint.json").read_text("utf-8"))
    del meta["config"]["input"]["orientation"]  # as before images were turned
    (older / "checkpoint.json").write_text(json.dumps(meta), "utf-8")
    loaded = load_checkpoint(older)
    assert loaded.config.input.orientation == "ignore"
    assert image_input(loaded).orientation == "ignore"


def test_the_manifest_is_read_and_written_again_byte_for_byte(
    made: tuple[Path, Path], tmp_path: Path
) -> None:
    path = made[1] / "manifest.json"
    write_json(tmp_path / "again.json", load_manifest(path).to_json())
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_the_unit_table_fits_the_exported_tensors(made: tuple[Path, Path]) -> None:
    bundle = open_bundle(made[1])
    table = bundle.unit_table()
    graph = onnx.load(made[1] / "model.onnx").graph
    values = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    for (tensor, axis), units in table.slots.items():
        assert values[tensor].shape[axis] == len(units), tensor
    # a pack's switches say where its row of the bank is zero
    units = table.slots["bank", 1]
    for name in bundle.domains:
        pack = bundle.pack(name)
        off = np.append(pack.switches == 0, False)[units]
        assert not pack.bank[off].any()
    assert table.params(np.ones(table.count, dtype=bool)) == bundle.manifest.params["exported"]


def test_an_existing_bundle_stays_unless_forced(made: tuple[Path, Path], tmp_path: Path) -> None:
    run, bundle = made
    with pytest.raises(PrunionError, match="--force"):
        export_bundle(run, bundle)
    copy = tmp_path / "again.prunion"
    shutil.copytree(bundle, copy)
    export_bundle(run, copy, force=True)
    assert (copy / "model.onnx").read_bytes() == (bundle / "model.onnx").read_bytes()


def test_nothing_is_written_when_the_forms_disagree(
    made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prunion.exporter.bundle import parts

    def wrong(*args: object) -> None:
        raise VerificationError("domain warm: differs")

    monkeypatch.setattr(parts, "verify_export", wrong)
    with pytest.raises(VerificationError):
        export_bundle(made[0], tmp_path / "out.prunion")
    assert list(tmp_path.iterdir()) == []


def test_switches_over_the_budget_are_refused(
    made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prunion.exporter.bundle import source

    loaded = load_checkpoint(made[0])
    loaded.net.switches.fill_(1)
    monkeypatch.setattr(source, "load_checkpoint", lambda _, **options: loaded)
    with pytest.raises(BudgetError, match="its budget allows"):
        export_bundle(made[0], tmp_path / "out.prunion")
    assert list(tmp_path.iterdir()) == []


def test_a_tampered_bundle_is_refused(made: tuple[Path, Path], tmp_path: Path) -> None:
    copy = tmp_path / "bad.prunion"
    shutil.copytree(made[1], copy)
    file = copy / "domains" / "cold.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleError, match=r"cold\.safetensors"):
        open_bundle(copy)


def test_the_unpruned_graph_holds_every_weight(made: tuple[Path, Path], tmp_path: Path) -> None:
    path = write_unpruned(made[0], tmp_path / "full.onnx")
    manifest = json.loads((made[1] / "manifest.json").read_text())
    assert weights_in(onnx.load(path)) == manifest["params"]["backbone"]


def test_with_round_to_1_no_dead_channel_is_left(tmp_path: Path) -> None:
    """Each remaining channel of each unit is searched: without it some domain answers otherwise."""
    run = tiny_run(tmp_path)
    run.write_text(run.read_text("utf-8").replace("round_to = 8", "round_to = 1"), "utf-8")
    train_run(load_config(run), tmp_path / "run")
    manifest = export_bundle(tmp_path / "run", tmp_path / "tiny.prunion")
    assert not manifest["rounding"]["added"]
    graph = onnx.load(tmp_path / "tiny.prunion" / "model.onnx")
    assert weights_in(graph) == manifest["params"]["exported"]
    bundle = open_bundle(tmp_path / "tiny.prunion")
    used = np.stack([bundle.pack(name).switches for name in bundle.domains])
    assert used.any(0).all(), "a channel that no domain uses"
    net = load_checkpoint(tmp_path / "run").net
    domains = torch.arange(16) % len(bundle.domains)
    images = torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = net.logits(images, domains)
        own = torch.isfinite(expected)
        for unit in torch.nonzero((net.switches > 0).any(0))[:, 0]:
            before = net.switches[:, unit].clone()
            net.switches[:, unit] = 0
            change = (net.logits(images, domains) - expected)[own].abs().max()
            net.switches[:, unit] = before
            assert change > 1e-6 * expected[own].abs().max(), int(unit)


@pytest.mark.parametrize("name", ["model.onnx", "x.ENGINE", "a.pt", "b.safetensors", "c.json"])
def test_a_files_name_for_a_bundle_is_refused_with_what_is_meant(tmp_path: Path, name: str) -> None:
    meant = (tmp_path / name).with_suffix(".prunion")
    with pytest.raises(InputError, match=r"a bundle is a folder.*model\.onnx in it") as told:
        export_bundle(tmp_path / "no run", tmp_path / name)
    assert str(meant) in str(told.value)
    assert not list(tmp_path.iterdir())


def test_what_nothing_could_open_is_not_written(
    made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prunion.runtime.bundle.manifest_parts.MAX_CLASSES", 1)
    with pytest.raises(VerificationError, match=r"manifest\.json: .*classes.*nothing was"):
        export_bundle(made[0], tmp_path / "x.prunion")
    assert list(tmp_path.iterdir()) == []


def test_every_side_that_a_run_may_ask_for_can_be_opened(made: tuple[Path, Path]) -> None:
    manifest = load_manifest(made[1] / "manifest.json")
    for size, resize in (((4096, 8), 8192), ((8, 4096), 4096)):
        asked = InputConfig(size=size, resize=resize)
        shape = replace(
            manifest.input, height=size[0], width=size[1], shorter_side=asked.shorter_side
        )
        told = replace(manifest, input=shape)
        assert Manifest.from_json(told.to_json(), "manifest.json") == told


def test_writing_packs_looks_through_the_others_for_none_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was left of each was looked for among all, so that time grew by their square."""
    looked: list[Path] = []
    monkeypatch.setattr(exchange, "_beside", lambda path, kind: looked.append(path) or [])
    row = np.zeros(2, np.float32)
    packs = [
        Pack(f"d{i}", ("a",), row, row[:, None], row[:1], np.ones(1, np.uint8), "ab" * 32)
        for i in range(3)
    ]
    written = write_packs(tmp_path, packs, [{"accuracy": None}] * 3, [1] * 3)
    assert not looked
    assert [read_pack(tmp_path / x.pack).name for x in written] == ["d0", "d1", "d2"]
