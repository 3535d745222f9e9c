"""Adapters in the graph of all domains: one table more, for packs and domains that come later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from prunion.exporter.bundle import export_bundle, export_pack, write_unpruned
from prunion.exporter.options import ExportOptions
from prunion.exporter.verify import verify_bundle
from prunion.runtime.bundle import Pack, adapter_row, open_bundle, read_pack, write_pack
from prunion.runtime.errors import BundleError, ConfigError, UnsupportedGraphError
from prunion.runtime.model import load
from prunion.runtime.tensorrt import build_engine
from prunion.trainer.network import load_checkpoint, save_checkpoint
from tests.support.networks.drawn import drawn_checkpoint

pytestmark = pytest.mark.thorough

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "whole": ("parallel", {}),
    "narrow": ("parallel", {"adapter_rank": 2}),
    "behind": ("series", {}),
    "pruned": ("bap", {"adapter_rank": 2}),
}
ROWS = ["cold", "warm", "warm", "cold", "warm"]


def checkpoint_of(folder: Path, kind: str) -> Path:
    """Random adapters; of `pruned` each domain uses some of the channels, and some nobody does."""
    method, train = KINDS[kind]
    path = drawn_checkpoint(folder, method, **train)
    if kind != "pruned":
        return path
    loaded = load_checkpoint(path)
    with torch.no_grad():
        draws = torch.rand(loaded.net.switches.shape, generator=torch.Generator().manual_seed(1))
        loaded.net.switches.copy_((draws < 0.5) & (draws[0] < 0.7))
    facts = {key: loaded.meta[key] for key in ("domains",)}
    save_checkpoint(path, loaded.net, loaded.config, {**facts, "phase": "settle"}, force=True)
    return path


def quick(*names: str) -> list[Any]:
    """All kinds; those not named are slow."""
    return [k if k in names else pytest.param(k, marks=pytest.mark.slow) for k in KINDS]


# `pruned` is as narrow as `narrow`, and more; some tests leave `whole` to it, too.
few = pytest.mark.parametrize("made", quick("behind", "pruned"), indirect=True, scope="module")


@pytest.fixture(scope="module", params=quick("whole", "behind", "pruned"))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The kind, its checkpoint and its bundle."""
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = checkpoint_of(folder, request.param)
    export_bundle(checkpoint, folder / "x.prunion", ExportOptions(uint8=True))
    return request.param, checkpoint, folder / "x.prunion"


def logits(path: Path, rows: list[str], **options: Any) -> np.ndarray:
    images = np.random.default_rng(0).standard_normal((len(rows), 3, 16, 16)).astype(np.float32)
    with load(path, "cpu", threads=1, **options) as model:
        return model.logits(images, rows)


def test_one_graph_answers_for_all_domains(made: Any) -> None:
    kind, checkpoint, bundle = made
    manifest = open_bundle(bundle).manifest
    assert not manifest.own_weights
    assert verify_bundle(bundle, against=checkpoint).problems == ()
    numbers = sum(entry.size for entry in manifest.adapters)
    assert manifest.params["adapters"] == 2 * numbers > 0
    graph = onnx.load(bundle / "model.onnx").graph
    table = next(x for x in graph.input if x.name == "adapters").type.tensor_type.shape.dim
    assert (table[0].dim_param, table[1].dim_value) == ("D", numbers)
    assert sum("adapters" in node.input for node in graph.node) == 1
    if kind == "pruned":
        assert manifest.params["exported"] < manifest.params["backbone"]
        widths = {name: pair[1] for name, pair in manifest.widths.items()}
        for entry in manifest.adapters:
            assert entry.outputs == widths[entry.weight.removesuffix(".weight")]
    net = load_checkpoint(checkpoint).net
    images = torch.from_numpy(
        np.random.default_rng(0).standard_normal((len(ROWS), 3, 16, 16)).astype(np.float32)
    )
    with torch.no_grad():
        expected = net.logits(images, torch.tensor([r == "cold" for r in ROWS]).long()).numpy()
    own = np.isfinite(expected)
    mixed = logits(bundle, ROWS, memory_limit=0)
    np.testing.assert_allclose(mixed[own], expected[own], atol=1e-4 * np.abs(expected[own]).max())


def test_a_domain_alone_has_them_folded(made: Any) -> None:
    _, _, bundle = made
    mixed = logits(bundle, ROWS, memory_limit=0)
    for name in ("cold", "warm"):
        alone = logits(bundle, [name] * len(ROWS))
        rows = [row == name for row in ROWS]
        own = np.isfinite(mixed[rows])
        np.testing.assert_allclose(alone[rows][own], mixed[rows][own], rtol=1e-4, atol=1e-4)
    with load(bundle, "cpu", threads=1) as model:
        pinned = model.sessions.make(open_bundle(bundle).pack("cold"), sliced=False)
        assert pinned.bytes < 1.05 * model.sessions.graph.size  # no table of adapters


def test_packs_carry_their_row_and_join_a_model(made: Any, tmp_path: Path) -> None:
    _, checkpoint, bundle = made
    expected = logits(bundle, ROWS, memory_limit=0)
    opened = open_bundle(bundle)
    pack = export_pack(checkpoint, "cold", tmp_path / "cold.safetensors")
    row = adapter_row(opened.manifest.adapters, pack.own)
    assert np.array_equal(row, adapter_row(opened.manifest.adapters, opened.pack("cold").own))
    plain = read_pack(tmp_path / "cold.safetensors")
    write_pack(tmp_path / "third", Pack(**{**vars(plain), "name": "third", "own": {}}))
    images = np.random.default_rng(0).standard_normal((len(ROWS), 3, 16, 16)).astype(np.float32)
    with load(bundle, "cpu", threads=1, memory_limit=0) as model:
        model.remove_domain("cold")
        model.add_domain(tmp_path / "cold.safetensors")
        np.testing.assert_allclose(model.logits(images, ROWS), expected, rtol=1e-4, atol=1e-4)
        model.add_domain(tmp_path / "third")  # one without adapters has the trunk's own answers
        third = model.logits(images, ["third", "cold", "warm", "third", "cold"])
        assert np.isfinite(third[0, :3]).all()
        assert np.abs(third[0, :3] - expected[0, :3]).max() > 1e-3
        np.testing.assert_allclose(third[2], expected[2], rtol=1e-4, atol=1e-4)
        hot = model.admit(tmp_path / "cold.safetensors")  # as a server's request for a hot domain
        warm = model.snapshot.domains[0]
        got = model.answer(model.sessions.form.prepare(images), [hot, warm, warm, hot, warm])
        own = np.isfinite(expected)
        np.testing.assert_allclose(got[own], expected[own], rtol=1e-4, atol=1e-4)


def test_a_pack_of_another_method_is_refused(made: Any, tmp_path: Path) -> None:
    _, checkpoint, bundle = made
    pack = export_pack(checkpoint, "cold", tmp_path / "cold.safetensors")
    name = next(iter(pack.own)).partition(":")[2]
    for own, said in (
        ({f"mask:{name}": np.zeros(1, np.uint8)}, "for which this bundle has no place"),
        ({k: v[..., :1] for k, v in pack.own.items()}, "expected"),
    ):
        write_pack(tmp_path / "other", Pack(**{**vars(pack), "name": "other", "own": own}))
        with load(bundle, "cpu", threads=1) as model, pytest.raises(BundleError, match=said):
            model.add_domain(tmp_path / "other")


@few
def test_float16_too(made: Any, tmp_path: Path) -> None:
    _, checkpoint, _ = made
    export_bundle(checkpoint, tmp_path / "half", ExportOptions(fp16=True))
    assert verify_bundle(tmp_path / "half").problems == ()
    half = logits(tmp_path / "half", ROWS, precision="fp16", memory_limit=0)
    alone = logits(tmp_path / "half", ["cold"] * len(ROWS), precision="fp16")
    whole = logits(tmp_path / "half", ROWS, memory_limit=0)
    own = np.isfinite(whole)
    np.testing.assert_allclose(half[own], whole[own], atol=0.05 * np.abs(whole[own]).max())
    np.testing.assert_allclose(alone[0], half[0], atol=0.05 * np.abs(whole[own]).max())
    for option in ("int8", "torch"):
        with pytest.raises(ConfigError, match=f"--{option} writes one trunk for all domains"):
            export_bundle(checkpoint, tmp_path / "out", ExportOptions(**{option: True}))


@few
def test_one_of_the_domains_alone(made: Any, tmp_path: Path) -> None:
    _, checkpoint, bundle = made
    expected = logits(bundle, ["cold"] * len(ROWS))
    alone = export_bundle(checkpoint, tmp_path / "a", ExportOptions(specialise="cold"))
    one = export_bundle(checkpoint, tmp_path / "b", ExportOptions(domains=("cold",)))
    assert (alone["format_version"], one["format_version"]) == (1, 1)
    for name in ("a", "b"):
        got = logits(tmp_path / name, ["cold"] * len(ROWS))
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_an_engine_takes_the_table_but_not_on_turing(made: Any, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install 'prunion[tensorrt-rtx]'")
    kind, _, bundle = made
    opened = open_bundle(bundle)
    with pytest.raises(UnsupportedGraphError, match=r"build for SM 8\.0 or later"):
        build_engine(opened, sms=[75], output=tmp_path / "old.engine")
    if kind == "pruned":
        build_engine(opened, sms=[86], output=tmp_path / "x.engine")
        assert (tmp_path / "x.engine").stat().st_size


@few
def test_a_rival_is_the_trunk_alone(made: Any, tmp_path: Path) -> None:
    _, checkpoint, _ = made
    graph = onnx.load(write_unpruned(checkpoint, tmp_path / "whole.onnx")).graph
    assert "adapters" not in {value.name for value in graph.input}
