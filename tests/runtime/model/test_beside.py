"""A graph that mixes the images of a batch answers nobody."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from prunion.runtime.backends import SessionOptions
from prunion.runtime.base import sha256_file
from prunion.runtime.bundle import open_bundle, pack_bits
from prunion.runtime.errors import BundleError
from prunion.runtime.model import load
from prunion.runtime.model.probing import beside as beside_module
from prunion.runtime.model.probing import check_beside
from tests.support.mixing import KINDS, mix, mix_by_weight, mix_domain

pytest.importorskip("onnxruntime")

MIXED = r"model\.onnx: images of one batch are mixed"


def saved(bundle: Path, model: onnx.ModelProto) -> None:
    """Whoever made a graph made the hashes too."""
    graph, manifest = bundle / "model.onnx", bundle / "manifest.json"
    onnx.save(model, graph)
    value = json.loads(manifest.read_text())
    value["files"]["model.onnx"] = sha256_file(graph)
    manifest.write_text(json.dumps(value))


@pytest.mark.parametrize("rows", [[1] * 6, [2, 0, 1, 1, 0, 2]])
@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_that_mixes_images_is_refused(
    own_bundle: Path, batch: np.ndarray, kind: str, rows: list[int]
) -> None:
    """A shift by twelve is idle in batches of up to twelve."""
    model = onnx.load(own_bundle / "model.onnx")
    mix(model, kind)
    saved(own_bundle, model)
    for _ in range(2):  # the second time by what is remembered
        with pytest.raises(BundleError, match=MIXED):
            load(own_bundle, "cpu", threads=1).logits(batch, rows)


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("domain", range(9))
def test_every_domain_is_asked(
    toy: ModuleType,
    tmp_path: Path,
    batch: np.ndarray,
    domain: int,
    alone: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A graph may mix the images of one domain only, and sessions of another are made first."""
    monkeypatch.setattr(toy, "CLASSES", {f"d{n}": ("yes", "no") for n in range(9)})
    bundle = toy.make_bundle(tmp_path)
    model = onnx.load(bundle / "model.onnx")
    mix_domain(model, domain)
    saved(bundle, model)
    with pytest.raises(BundleError, match=MIXED):
        load(bundle, "cpu", threads=1).logits(batch, 3 if alone else [0, 1, 2, 3, 4, 5])


def test_every_domain_with_its_own_weights_is_asked(
    toy: ModuleType, tmp_path: Path, batch: np.ndarray
) -> None:
    """Each has a graph of its own, and its weights may be what turns mixing on."""
    mask = np.ones((toy.WIDTH, 3, 3, 3), bool)
    mask[0, 0, 0, 0] = False
    own = {"flowers": {"mask:conv.weight": pack_bits(mask)}}
    bundle = toy.make_bundle(tmp_path, own=own)
    model = onnx.load(bundle / "model.onnx")
    mix_by_weight(model)
    saved(bundle, model)
    loaded = load(bundle, "cpu", threads=1)
    loaded.logits(batch, 0)
    with pytest.raises(BundleError, match=MIXED):
        loaded.logits(batch, 2)


@pytest.mark.parametrize("rows", [[1] * 60, [0, 1, 2] * 20])
def test_batches_larger_than_were_compared_are_compared_first(
    own_bundle: Path, batch: np.ndarray, rows: list[int]
) -> None:
    """A shift by forty places is idle in what is compared as a bundle is loaded."""
    model = onnx.load(own_bundle / "model.onnx")
    mix(model, "roll 40")
    saved(own_bundle, model)
    loaded = load(own_bundle, "cpu", threads=1)
    loaded.logits(batch, 1)
    for _ in range(2):
        with pytest.raises(BundleError, match=MIXED):
            loaded.logits(np.tile(batch, (10, 1, 1, 1)), rows)


def test_larger_batches_are_compared_once(
    bundle_path: Path, batch: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[int]()

    def counted(*args: object) -> None:
        asked.append(args[-1])  # type: ignore[arg-type]

    loaded = load(bundle_path, "cpu", threads=1)
    loaded.logits(batch, 1)
    monkeypatch.setattr("prunion.runtime.model.probing.probe.check_beside", counted)
    for count in (33, 34, 60, 67, 68):
        loaded.logits(np.resize(batch, (count, *batch.shape[1:])), 1)
    assert asked == [67, 135]


def not_finite_where(model: onnx.ModelProto, least: float) -> None:
    """Images whose largest value is below `least` are answered by NaN, each for itself."""
    graph, node = model.graph, helper.make_node
    for name, value in (("axes", np.array([1, 2, 3])), ("least", np.float32(least))):
        graph.initializer.append(numpy_helper.from_array(np.asarray(value), f"nan_{name}"))
    found = [
        node("ReduceMax", ["image", "nan_axes"], ["nan_top"], keepdims=1),
        node("Sub", ["nan_top", "nan_least"], ["nan_above"]),
        node("Sqrt", ["nan_above"], ["nan_root"]),
        node("Sub", ["nan_root", "nan_root"], ["nan_nothing"]),
        node("Add", ["image", "nan_nothing"], ["nan_image"]),
    ]
    for reader in graph.node:
        reader.input[:] = ["nan_image" if x == "image" else x for x in reader.input]
    nodes = [*found, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


@pytest.mark.parametrize("rows", [1, [2, 0, 1, 1, 0, 2]])
@pytest.mark.parametrize("mixes", [False, True])
def test_images_without_an_answer_of_their_own_are_no_sign_of_mixing(
    own_bundle: Path, batch: np.ndarray, rows: int | list[int], mixes: bool
) -> None:
    """float16 may divide by 0 for one image of noise, and answer others as it should."""
    model = onnx.load(own_bundle / "model.onnx")
    not_finite_where(model, 2.0)
    if mixes:
        mix(model, "roll 2")
    saved(own_bundle, model)
    loaded = load(own_bundle, "cpu", threads=1)
    bright = np.clip(batch, 0, None) + 2.5
    if mixes:
        with pytest.raises(BundleError, match=MIXED):
            loaded.logits(bright, rows)
    else:
        assert np.isfinite(loaded.logits(bright, rows)).any()


def test_what_was_found_is_remembered(
    bundle_path: Path,
    batch: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PRUNION_CACHE", str(tmp_path / "cache"))
    asked = list[int]()
    true = beside_module._error

    def counted(*args: object, **named: bool) -> tuple[float, bool]:
        asked.append(1)
        return true(*args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(beside_module, "_error", counted)
    for _ in range(2):
        model = load(bundle_path, "cpu", threads=1)
        model.logits(batch, [2, 0, 1, 1, 0, 2])
        model.logits(batch, [1] * 6)
        assert len(asked) == 2, "a mixed graph, and one of a domain alone"


def test_a_cache_that_cannot_be_written_is_told_once(
    bundle_path: Path,
    batch: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PRUNION_CACHE", str(tmp_path / "file" / "cache"))
    for _ in range(2):
        load(bundle_path, "cpu", threads=1).logits(batch, 1)
    assert caplog.text.count("set PRUNION_CACHE to a folder that can be written") == 1


def test_short_memory_takes_smaller_batches_and_remembers_nothing(
    bundle_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cache, bundle = tmp_path / "cache", open_bundle(bundle_path)
    monkeypatch.setenv("PRUNION_CACHE", str(cache))
    spec, graph = bundle.manifest.input, bundle.held_graph("fp32").size
    free = 4 * graph + 20 * 400 * spec.height * spec.width
    monkeypatch.setattr(beside_module, "available_bytes", lambda: free)
    check_beside(bundle, "fp32", SessionOptions("cpu", threads=1))
    assert "in batches of at most 20" in caplog.text
    monkeypatch.setattr(beside_module, "available_bytes", lambda: free // 4)
    check_beside(bundle, "fp32", SessionOptions("cpu", threads=1))
    assert "whether images are mixed is not checked" in caplog.text
    assert not list(cache.rglob("*.json"))
