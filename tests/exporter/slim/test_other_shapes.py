"""Subsets, one domain on its own, packs alone, and the sliced network as a torch model."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import numpy_helper
from torch import nn

from prunion.exporter.bundle import export_bundle
from prunion.exporter.graph import (
    make_probe,
    one_domain_graph,
    onnx_graph,
    open_graph,
    run_graph,
    verify_export,
)
from prunion.exporter.options import ExportOptions
from prunion.exporter.slim import (
    fold_domain,
    keep_domains,
    kept_units,
    load_slim,
    save_slim,
    slim_network,
)
from prunion.exporter.verify import verify_bundle
from prunion.runtime.bundle import check_pack, open_bundle, read_pack
from prunion.runtime.cli import cli
from prunion.runtime.errors import CheckpointError, ConfigError, DomainError
from prunion.trainer.network import load_checkpoint
from tests.exporter.slim.test_network import MODELS, NoNorm, PreActivation, switch_off
from tests.support.networks.small import domain_net


@pytest.fixture(scope="module")
def whole(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("shapes") / "whole.prunion"
    export_bundle(tiny, output, ExportOptions(torch=True))
    return output


SLOW = [pytest.param(m, marks=pytest.mark.slow) for m in MODELS if m not in (NoNorm, PreActivation)]


@pytest.mark.parametrize("model", [NoNorm, PreActivation, *SLOW])
def test_one_domain_alone_computes_the_same(model: type[nn.Module], tmp_path: Path) -> None:
    net = switch_off(domain_net(model(), (4,)))
    folded = fold_domain(slim_network(net))
    graph = one_domain_graph(folded, 8, 8)
    onnx.save(graph, tmp_path / "model.onnx")
    images = torch.randn(5, 3, 8, 8)
    assert verify_export(net, folded, tmp_path / "model.onnx", images, ["only"]).worst < 1e-5
    assert [i.name for i in graph.graph.input] == ["image"]
    assert not {"Gather", "Split"} & {n.op_type for n in graph.graph.node} - _shuffles(model)


def _shuffles(model: type[nn.Module]) -> set[str]:
    """Channels that are picked one by one are gathered in any graph."""
    return {"Gather"} if model.__name__ in ("Shuffle", "Split") else set()


def test_batchnorm_is_gone_when_specialised(tiny: Path, tmp_path: Path) -> None:
    output = tmp_path / "warm.prunion"
    manifest = export_bundle(tiny, output, ExportOptions(specialise="warm", opset=17))
    ops = [n.op_type for n in onnx.load(output / "model.onnx").graph.node]
    assert "Mul" not in ops and ops.count("Add") == ops.count("Conv") // 2  # the residual sums
    assert [d["name"] for d in manifest["domains"]] == ["warm"]
    assert manifest["bank"] == [] and manifest["heads"] == "single"
    assert not verify_bundle(output, against=tiny).problems


def test_a_subset_is_sliced_to_its_own_union(tiny: Path, whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "cold.prunion"
    manifest = export_bundle(tiny, output, ExportOptions(domains=("cold",)))
    everything = json.loads((whole / "manifest.json").read_text())
    assert manifest["params"]["exported"] <= everything["params"]["exported"]
    assert not verify_bundle(output, against=tiny).problems
    multiple = load_checkpoint(tiny).config.budget.round_to
    assert manifest["rounding"]["multiple"] == multiple == 8
    assert all(after % 8 == 0 for _, after in manifest["widths"].values())


def test_a_subset_keeps_its_order_and_rounds_with_unused_channels(tiny: Path) -> None:
    loaded = load_checkpoint(tiny)
    everyone = loaded.net.switches
    everyone[1, loaded.net.units.table.widths[0][:3]] = 0
    kept = keep_domains(loaded, ["cold"])
    alive = kept_units(kept, everyone)
    used = (kept.net.switches[0] > 0).numpy()
    slim = slim_network(kept.net, alive)
    assert (alive & ~used).any()
    assert slim.table.count == alive.sum() and slim.used.sum() == used.sum()
    images = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        expected = kept.net.logits(images, torch.zeros(4, dtype=torch.int64))
        got = slim.logits(images, torch.zeros(4, dtype=torch.int64))
    assert torch.allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_a_width_that_none_of_the_subset_uses_keeps_one_channel(tiny: Path) -> None:
    loaded = load_checkpoint(tiny)
    everyone = loaded.net.switches
    width = loaded.net.units.table.widths[0]
    everyone[1, width] = 0
    kept = keep_domains(loaded, ["cold"])
    # Without rounding nothing else would bring a channel back.
    config = replace(kept.config, budget=replace(kept.config.budget, round_to=1))
    alive = kept_units(replace(kept, config=config), everyone)
    assert alive[width].sum() == 1
    assert everyone[0, torch.from_numpy(width[alive[width]])] == 1, "it is one of the whole union"
    onnx_graph(slim_network(kept.net, alive), 16, 16)


def test_unknown_domains_are_named(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(DomainError, match="no domain 'wram': it has warm, cold"):
        export_bundle(tiny, tmp_path / "x.prunion", ExportOptions(domains=("wram",)))
    with pytest.raises(DomainError, match="named twice"):
        export_bundle(tiny, tmp_path / "x.prunion", ExportOptions(domains=("warm", "warm")))
    with pytest.raises(ConfigError, match="give one of them"):
        ExportOptions(domains=("warm",), specialise="warm")
    assert list(tmp_path.iterdir()) == []


def test_a_pack_alone_is_the_bundles_own(tiny: Path, whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "cold.safetensors"
    result = CliRunner().invoke(cli, ["pack", str(tiny), "cold", "-o", str(path)])
    assert result.exit_code == 0, result.output
    made, theirs = read_pack(path), read_pack(whole / "domains" / "cold.safetensors")
    for field, value in vars(theirs).items():
        np.testing.assert_array_equal(getattr(made, field), value)
    bundle = open_bundle(whole)
    check_pack(
        read_pack(path),
        trunk_hash=bundle.manifest.trunk_hash,
        columns=bundle.manifest.bank_columns,
    )
    again = CliRunner().invoke(cli, ["pack", str(tiny), "cold", "-o", str(path)])
    assert again.exit_code == 1 and "--force" in again.stderr
    wrong = CliRunner().invoke(cli, ["pack", str(tiny), "c", "-o", str(tmp_path / "c")])
    assert wrong.exit_code == 1 and "no domain 'c'" in wrong.stderr


def test_an_exported_pack_feeds_the_graph(tiny: Path, whole: Path) -> None:
    """A row taken from a pack, put below the defaults, answers as the domain itself does."""
    pack, graph = read_pack(whole / "domains" / "warm.safetensors"), whole / "model.onnx"
    values = {i.name: numpy_helper.to_array(i) for i in onnx.load(graph).graph.initializer}
    weight = np.zeros((1, *values["head_weight"].shape[1:]), np.float32)
    bias = np.full((1, values["head_bias"].shape[1]), -np.inf, np.float32)
    weight[0, :, :2], bias[0, :2] = pack.head_weight, pack.head_bias
    probe = make_probe(4, (16, 16), (0.5,) * 3, (0.2,) * 3, domains=1)
    expected = run_graph(open_graph(graph), probe)
    feeds = {
        "image": probe.images,
        "domain": np.full(4, 2),
        "bank": np.concatenate([values["bank"], pack.bank[None]]),
        "head_weight": np.concatenate([values["head_weight"], weight]),
        "head_bias": np.concatenate([values["head_bias"], bias]),
    }
    (got,) = open_graph(graph).run(["logits"], feeds)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_the_torch_model_reloads_without_the_checkpoint(whole: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole / "torch", tmp_path / "torch"))
    assert {p.suffix for p in folder.iterdir()} == {".json", ".safetensors"}
    slim = load_slim(folder)
    probe = make_probe(6, (16, 16), (0.5,) * 3, (0.2,) * 3, domains=2)
    with torch.no_grad():
        got = slim.logits(torch.from_numpy(probe.images), torch.from_numpy(probe.domains))
    expected = run_graph(open_graph(whole / "model.onnx"), probe)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-4, atol=1e-5)
    plan = json.loads((folder / "plan.json").read_text())
    kept = plan["kept"]["layer1.0.conv1.weight"]
    assert slim.state_dict()["trunk.layer1.0.conv1.weight"].shape[:2] == (
        len(kept["0"]),
        len(kept["1"]),
    )


def test_a_damaged_torch_model_is_refused(tiny: Path, tmp_path: Path) -> None:
    loaded = load_checkpoint(tiny)
    alive = kept_units(loaded, loaded.net.switches)
    folder = tmp_path / "torch"
    save_slim(folder, slim_network(loaded.net, alive), loaded, alive)
    plan = json.loads((folder / "plan.json").read_text())
    plan["units"]["kept"] = plan["units"]["kept"][:-1]
    (folder / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(CheckpointError, match="does not fit"):
        load_slim(folder)
    data = (folder / "slim.safetensors").read_bytes()
    (folder / "slim.safetensors").write_bytes(data[:-1])
    with pytest.raises(CheckpointError, match="truncated or altered"):
        load_slim(folder)
    (folder / "slim.safetensors").unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        load_slim(folder)
