"""Slices in a bundle: packed, a bit for each domain's; channels without any are cut."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.numpy import load_file, save_file

from prunion.exporter.bundle import export_bundle, export_pack
from prunion.exporter.options import ExportOptions
from prunion.exporter.verify import verify_bundle
from prunion.runtime.base import sha256_file
from prunion.runtime.bundle import open_bundle, read_pack
from prunion.runtime.errors import BundleError, ConfigError
from prunion.runtime.model import load
from prunion.trainer.config import BudgetConfig, TrainConfig, load_config
from prunion.trainer.methods.slices import SliceSwitches
from prunion.trainer.network import (
    DomainNet,
    adapt_network,
    build_network,
    load_checkpoint,
    save_checkpoint,
)
from tests.support.networks.drawn import NAMES, drawn_checkpoint
from tests.support.tiny_run import tiny_run

pytestmark = pytest.mark.thorough

ROWS = ["cold", "warm", "warm", "cold"]
SITE = "layer1.0.conv1.weight"  # its outputs are read by one convolution, and by nothing else


def off(net: DomainNet, channels: list[int]) -> None:
    """In every domain no slice reads these channels of the site's outputs."""
    assert isinstance(net.adapter, SliceSwitches)
    scores = net.adapter.scores["layer1/0/conv2/weight"].view(2, 64, 64)
    with torch.no_grad():
        scores[:, :, channels] = -1


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random slices are off, in either domain others; eight channels are nobody's."""
    path = drawn_checkpoint(tmp_path_factory.mktemp("slices"), "bap", granularity='"slice"')
    loaded = load_checkpoint(path)
    adapter = loaded.net.adapter
    assert isinstance(adapter, SliceSwitches)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for scores in adapter.scores.values():
            scores.copy_(torch.rand(scores.shape, generator=generator) - 0.6)
    off(loaded.net, list(range(8)))
    adapter.fixed.fill_(True)
    adapter.bury()
    loaded.net.drop_units(adapter.dead_units())
    facts = {"domains": loaded.meta["domains"], "phase": "settle"}
    save_checkpoint(path, loaded.net, loaded.config, facts, force=True)
    return path


@pytest.fixture(scope="module")
def bundle(checkpoint: Path) -> Path:
    export_bundle(checkpoint, checkpoint.parent / "x.prunion", ExportOptions(uint8=True))
    return checkpoint.parent / "x.prunion"


def answers(path: Path, **options: Any) -> np.ndarray:
    images = np.random.default_rng(0).standard_normal((4, 3, 16, 16)).astype(np.float32)
    with load(path, "cpu", threads=1, **options) as model:
        return model.logits(images, ROWS)


def test_what_nobody_uses_is_not_stored(checkpoint: Path, bundle: Path) -> None:
    assert verify_bundle(bundle, against=checkpoint).problems == ()
    manifest = open_bundle(bundle).manifest
    assert manifest.packed
    assert manifest.widths["layer1.0.conv1"] == (64, 56)  # cut physically
    assert manifest.params["exported"] < manifest.params["backbone"]
    adapter = load_checkpoint(checkpoint).net.adapter
    assert isinstance(adapter, SliceSwitches)
    used = sum(int(on.any(0).sum()) * adapter.prices[n] for n, on in adapter.slices().items())
    shared = load_file(bundle / "shared.safetensors")
    assert sum(v.size for k, v in shared.items() if k.startswith("packed:")) == used
    stored = onnx.load(bundle / "model.onnx")
    empty = {x.name for x in stored.graph.initializer if x.dims and not x.raw_data}
    assert {f"packed:{name}" for name in empty} == {k for k in shared if k.startswith("packed:")}
    whole = 4 * manifest.params["backbone"]
    assert sum(f.stat().st_size for f in (bundle / "model.onnx", bundle / "shared.safetensors")) < (
        0.75 * whole
    )
    for name in ("warm", "cold"):
        pack = load_file(bundle / "domains" / f"{name}.safetensors")
        bits = 8 * sum(v.size for k, v in pack.items() if k.startswith("slices_of:"))
        assert bits <= sum(int(on.any(0).sum()) for on in adapter.slices().values()) + 8 * len(
            empty
        )


def test_domains_answer_as_their_torch_network(checkpoint: Path, bundle: Path) -> None:
    net = load_checkpoint(checkpoint).net
    images = np.random.default_rng(0).standard_normal((4, 3, 16, 16)).astype(np.float32)
    with torch.no_grad():
        rows = torch.tensor([row == "cold" for row in ROWS]).long()
        expected = net.logits(torch.from_numpy(images), rows).numpy()
    own = np.isfinite(expected)
    np.testing.assert_allclose(answers(bundle)[own], expected[own], rtol=1e-4, atol=1e-4)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
    with (
        load(bundle, "cpu", threads=1) as one,
        load(bundle, "cpu", threads=1, precision="fp32-uint8") as other,
    ):
        pairs = zip(one.predict(list(pixels), ROWS), other.predict(list(pixels), ROWS), strict=True)
        assert all(a.class_name == b.class_name for a, b in pairs)


def test_a_pack_of_its_own(checkpoint: Path, bundle: Path, tmp_path: Path) -> None:
    expected = answers(bundle)
    export_pack(checkpoint, "cold", tmp_path / "cold.safetensors")
    images = np.random.default_rng(0).standard_normal((4, 3, 16, 16)).astype(np.float32)
    with load(bundle, "cpu", threads=1) as model:
        model.remove_domain("cold")
        model.add_domain(tmp_path / "cold.safetensors")
        np.testing.assert_allclose(model.logits(images, ROWS), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("how", ["a run of one", "--domains"])
def test_slices_of_an_only_domain_are_packed_too(
    checkpoint: Path, tmp_path: Path, how: str
) -> None:
    """Counted, packed, answered and exchanged as those of several."""
    source, options = checkpoint, ExportOptions(domains=("warm",), uint8=True)
    if how == "a run of one":
        source = drawn_checkpoint(tmp_path / "run", "ba2", domains=1, granularity='"slice"')
        options = ExportOptions(uint8=True)
    before = load_checkpoint(source, merge=False).net
    assert isinstance(before.adapter, SliceSwitches)
    used = before.adapter.used()[1][0]
    manifest = export_bundle(source, tmp_path / "x.prunion", options)
    assert verify_bundle(tmp_path / "x.prunion", against=source).problems == ()
    opened = open_bundle(tmp_path / "x.prunion").manifest
    assert opened.packed and manifest["paper"]["flop"] == manifest["paper"]["flop_union"] < 0.9
    bits = before.adapter.bits() / 32 / before.adapter.whole
    assert manifest["paper"]["params"] == pytest.approx(used + bits, abs=0.02)
    shared = load_file(tmp_path / "x.prunion" / "shared.safetensors")
    stored = sum(v.size for k, v in shared.items() if k.startswith("packed:"))
    assert stored == pytest.approx(used * before.adapter.whole, rel=0.01)
    images = np.random.default_rng(0).standard_normal((4, 3, 16, 16)).astype(np.float32)
    net = load_checkpoint(source).net  # of one domain, its weights in the trunk's place
    with torch.no_grad():
        expected = net.logits(torch.from_numpy(images), torch.zeros(4, dtype=torch.int64)).numpy()
    expected = expected[:, : NAMES["warm"]]
    export_pack(source, "warm", tmp_path / "warm.safetensors")
    with load(tmp_path / "x.prunion", "cpu", threads=1) as model:
        got = model.logits(images, ["warm"] * 4)[:, : NAMES["warm"]]
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    if how == "a run of one":  # and its pack is the bundle's
        packs = [tmp_path / "warm.safetensors", tmp_path / "x.prunion/domains/warm.safetensors"]
        one, other = (load_file(path) for path in packs)
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[key], other[key]) for key in one)
        trunks = {read_pack(path).trunk_hash for path in packs}
        assert len(trunks) == 1


def test_a_specialised_graph_holds_zeros_and_its_manifest_what_is_used(
    checkpoint: Path, tmp_path: Path
) -> None:
    """Others run it: it is an ordinary graph. What the domain uses is counted all the same."""
    alone = export_bundle(checkpoint, tmp_path / "a.prunion", ExportOptions(domains=("warm",)))
    options = ExportOptions(specialise="warm", fp16=True)
    manifest = export_bundle(checkpoint, tmp_path / "b.prunion", options)
    assert manifest["paper"] == alone["paper"]
    assert not open_bundle(tmp_path / "b.prunion").manifest.packed
    assert verify_bundle(tmp_path / "b.prunion", against=checkpoint).problems == ()
    held = onnx.load(tmp_path / "b.prunion" / "model.onnx").graph.initializer
    weights = [onnx.numpy_helper.to_array(x) for x in held if len(x.dims) == 4]
    shares = [np.abs(w).sum((2, 3)).astype(bool).mean() for w in weights]
    assert max(shares) < 0.6
    with pytest.raises(ConfigError, match=r"--fp16 writes one trunk .* or give --specialise"):
        export_bundle(
            checkpoint, tmp_path / "c.prunion", ExportOptions(domains=("warm",), fp16=True)
        )


def test_values_that_do_not_fit_are_refused(bundle: Path, tmp_path: Path) -> None:
    def changed(change: Any) -> Path:
        path = tmp_path / f"x{len(list(tmp_path.iterdir()))}.prunion"
        shutil.copytree(bundle, path)
        parts = load_file(path / "shared.safetensors")
        change(parts)
        save_file(parts, path / "shared.safetensors")
        manifest = json.loads((path / "manifest.json").read_text("utf-8"))
        manifest["files"]["shared.safetensors"] = sha256_file(path / "shared.safetensors")
        (path / "manifest.json").write_text(json.dumps(manifest), "utf-8")
        return path

    key, bits = f"packed:{SITE}", f"union:{SITE}"
    for change, said in (
        (lambda parts: parts.update({key: parts[key][1:]}), "values for"),
        (lambda parts: parts.update({"packed:gone": parts.pop(key)}), "holds no weight"),
        (lambda parts: parts.pop(bits), "has no bits of its slices"),
        (lambda parts: parts.update({bits: parts[bits][1:]}), "bytes of bits"),
    ):
        with pytest.raises(BundleError, match=said):
            load(changed(change), "cpu", threads=1)


def test_slices_of_whole_channels_are_cut_as_channels_are(tmp_path: Path) -> None:
    """Eight channels that no slice reads, and the same ones switched off: one graph, one answer."""
    config = load_config(tiny_run(tmp_path, granularity='"slice"'))
    torch.manual_seed(0)
    found = []
    for kind in ("slice", "channel"):
        torch.manual_seed(0)
        net = build_network(config.backbone, (16, 16), [2, 3], weights=False)
        if kind == "slice":
            adapt_network(net, TrainConfig(granularity="slice"))
            off(net, list(range(8)))
            assert isinstance(net.adapter, SliceSwitches)
            net.adapter.bury()
            net.drop_units(net.adapter.dead_units())
        else:
            units = net.units.table.slots[SITE, 0][:8]
            net.switches[:, torch.from_numpy(units)] = 0
        train = TrainConfig(granularity=kind)  # type: ignore[arg-type]
        domains = [{"name": n, "classes": list("abc"[:count])} for n, count in NAMES.items()]
        facts = {"domains": domains, "phase": "settle"}
        folder = tmp_path / kind
        whole = replace(config, train=train, budget=BudgetConfig(1.0, round_to=8))
        save_checkpoint(folder, net.eval(), whole, facts, force=False)
        manifest = export_bundle(folder, tmp_path / f"{kind}.prunion")
        got = answers(tmp_path / f"{kind}.prunion")
        found.append((manifest["widths"], manifest["macs"]["exported"], got))
    assert found[0][:2] == found[1][:2]
    assert found[0][0]["layer1.0.conv1"] == [64, 56]
    np.testing.assert_allclose(found[0][2], found[1][2], rtol=1e-4, atol=1e-4)
