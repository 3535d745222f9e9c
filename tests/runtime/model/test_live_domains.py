"""Domains come and go while requests run."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import json
import threading
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from prunion.runtime.base import read_json, sha256_file, write_json
from prunion.runtime.base.machine import rss_bytes
from prunion.runtime.bundle import Pack, open_bundle, write_pack
from prunion.runtime.errors import BundleError, DomainError, InputError
from prunion.runtime.model import Model, load
from prunion.runtime.protocol import domains_of, http_request, images_of

pytest.importorskip("onnxruntime")


def make_pack(bundle_path: Path, name: str, seed: int, classes: int = 7) -> Pack:
    """A pack of the same trunk with random numbers."""
    random, signs = np.random.default_rng(seed), open_bundle(bundle_path).pack("signs")
    switches = (random.random(len(signs.switches)) < 0.6).astype(np.uint8)
    switches[0] = 1
    bank = random.normal(size=len(signs.bank)).astype(np.float32) * np.tile(switches, 2)
    return Pack(
        name,
        tuple(f"class {i}" for i in range(classes)),
        bank,
        random.normal(size=(len(switches), classes)).astype(np.float32),
        random.normal(size=classes).astype(np.float32),
        switches,
        signs.trunk_hash,
    )


def expected(toy: ModuleType, pack: Pack, image: np.ndarray) -> np.ndarray:
    """The pack's own logits `[N, C]` in plain numpy."""
    tables = toy.Tables(
        toy.make_tables().weight, pack.bank[None], pack.head_weight[None], pack.head_bias[None]
    )
    return toy.reference(tables, image, np.zeros(len(image), int))


@pytest.fixture(params=["cpu", "openvino"])
def model(request: pytest.FixtureRequest, bundle_path: Path) -> Model:
    if request.param == "openvino":
        pytest.importorskip("openvino", reason="pip install 'prunion[openvino]'")
    return load(bundle_path, request.param, threads=1)


def test_an_added_domain_answers(
    model: Model, bundle_path: Path, toy: ModuleType, batch: np.ndarray, tmp_path: Path
) -> None:
    pack = make_pack(bundle_path, "cars", 3)
    write_pack(tmp_path / "cars.safetensors", pack)
    assert model.add_domain(tmp_path / "cars.safetensors") == "cars"
    assert model.domains == ("flowers", "signs", "digits", "cars")
    own = expected(toy, pack, batch)
    np.testing.assert_allclose(model.logits(batch, ["cars"] * 6), own, rtol=1e-4, atol=1e-5)
    mixed = model.logits(batch, ["cars", 0, "cars", 1, 3, 2])
    assert mixed.shape == (6, 7), "the widest domain has 7 classes now"
    np.testing.assert_allclose(mixed[[0, 2, 4]], own[[0, 2, 4]], rtol=1e-4, atol=1e-5)
    old = toy.reference(toy.make_tables(), batch, np.array([0, 0, 0, 1, 0, 2]))
    np.testing.assert_allclose(mixed[[1, 3, 5], :5], old[[1, 3, 5]], rtol=1e-4, atol=1e-5)
    assert np.isneginf(mixed[[1, 3, 5], 5:]).all()
    (answer,) = model.predict(batch[:1], "cars")
    assert answer.class_name == f"class {own[0].argmax()}"


def test_a_removed_domain_is_gone(model: Model, toy: ModuleType, batch: np.ndarray) -> None:
    model.logits(batch, [1] * 6)
    assert model.remove_domain("signs") == "signs"
    assert model.domains == ("flowers", "digits")
    with pytest.raises(DomainError, match="no domain 'signs'"):
        model.predict(batch, "signs")
    with pytest.raises(DomainError, match=r"index 2 is outside 0\.\.1"):
        model.logits(batch, [2] * 6)
    rows = np.array([1, 0, 1, 0, 1, 0])
    old = toy.reference(toy.make_tables(), batch, 2 * rows)[:, :3]
    np.testing.assert_allclose(model.logits(batch, rows), old, rtol=1e-4, atol=1e-5)
    assert model.explain().sessions.keys() <= {"flowers", "digits"}
    assert model.remove_domain(1) == "digits"
    with pytest.raises(InputError, match="last domain"):
        model.remove_domain(0)


def test_a_request_keeps_the_domains_it_named(
    model: Model, bundle_path: Path, toy: ModuleType, batch: np.ndarray
) -> None:
    tensors = [
        {"name": "image", "datatype": "FP32", "shape": [*batch.shape], "data": batch.tolist()},
        {"name": "domain", "datatype": "BYTES", "shape": [6], "data": ["digits"] * 6},
    ]
    request = http_request(json.dumps({"inputs": tensors}).encode(), None)
    image = images_of(request, model.sessions.form, {"image", "domain"}, 256)
    domains = domains_of(request, 6)
    assert isinstance(image, np.ndarray)
    model.remove_domain("flowers")  # digits moves up to the row that was signs'
    own = expected(toy, open_bundle(bundle_path).pack("digits"), batch)
    got = model.logits(image, domains)
    np.testing.assert_allclose(got[:, :2], own, rtol=1e-4, atol=1e-5)
    assert np.isneginf(got[:, 2:]).all()


def test_a_late_request_leaves_no_session_behind(
    model: Model, bundle_path: Path, toy: ModuleType, batch: np.ndarray
) -> None:
    before = model._tables
    model.remove_domain("signs")
    got = model._answer(before, batch, np.full(6, 1))
    own = expected(toy, open_bundle(bundle_path).pack("signs"), batch)
    np.testing.assert_allclose(got, own, rtol=1e-4, atol=1e-5)
    assert model.sessions.resident() == {}
    assert len(model.sessions._gone) == 1
    del before
    gc.collect()
    assert len(model.sessions._gone) == 0, "domains that are gone are not kept for ever"


def test_packs_that_do_not_fit_are_refused(bundle_path: Path, tmp_path: Path) -> None:
    model, pack = load(bundle_path, "cpu", threads=1), make_pack(bundle_path, "cars", 3)
    other = dataclasses.replace(pack, trunk_hash="cd" * 32)
    with pytest.raises(BundleError, match="was made for trunk cdcd"):
        model.add_domain(other)
    with pytest.raises(BundleError, match="has 7 switches, expected 8"):
        model.add_domain(dataclasses.replace(pack, switches=pack.switches[1:]))
    with pytest.raises(BundleError, match=r"bank is \[15\]"):
        model.add_domain(dataclasses.replace(pack, bank=pack.bank[1:]))
    with pytest.raises(BundleError, match="takes 7 features"):
        model.add_domain(dataclasses.replace(pack, head_weight=pack.head_weight[1:]))
    with pytest.raises(BundleError, match="bank holds NaN"):
        model.add_domain(dataclasses.replace(pack, bank=pack.bank * np.float32(np.nan)))
    for name in ("", "car\x1b[2J"):
        with pytest.raises(BundleError, match="a name "):
            model.add_domain(dataclasses.replace(pack, name=name))
    with pytest.raises(InputError, match="a domain 'signs' already"):
        model.add_domain(dataclasses.replace(pack, name="signs"))
    with pytest.raises(BundleError, match="does not exist"):
        model.add_domain(tmp_path / "nothing.safetensors")
    assert model.domains == ("flowers", "signs", "digits")


class Load:
    """Threads that ask without a pause and check every answer."""

    def __init__(self, model: Model, batch: np.ndarray, truth: dict[str, np.ndarray]) -> None:
        self.model, self.batch, self.truth = model, batch, truth
        self.stop, self.failures = threading.Event(), list[str]()
        self.answers = self.unknown = 0
        self.threads = [threading.Thread(target=self.ask, args=(seed,)) for seed in range(4)]

    def ask(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        names = list(self.truth)
        while not self.stop.is_set():
            chosen = random.choice(names, 6 if random.random() < 0.5 else 1)
            chosen = np.resize(chosen, 6).tolist()
            try:
                logits = self.model.logits(self.batch, chosen)
            except DomainError:
                self.unknown += 1
                continue
            except Exception as exc:
                self.failures.append(repr(exc))
                return
            self.answers += 1
            for row, name in enumerate(chosen):
                own = self.truth[name][row]
                right = np.allclose(logits[row, : len(own)], own, rtol=1e-3, atol=1e-4)
                if not right or not np.isneginf(logits[row, len(own) :]).all():
                    self.failures.append(f"{name} among {chosen}")


def test_a_product_of_domains_and_classes_that_memory_does_not_hold(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One domain's many classes are a column of every other's table."""
    model = load(bundle_path, backend="cpu", threads=1)
    wide = make_pack(bundle_path, "wide", 1, classes=50_000)
    monkeypatch.setattr("prunion.runtime.graph.form.UNASKED", 1 << 20)
    monkeypatch.setattr("prunion.runtime.graph.form.available_bytes", lambda: 1 << 20)
    with pytest.raises(InputError, match=r"4 domains with up to 50,000 .* 6 MiB .* 1 MiB are"):
        model.add_domain(wide)
    assert "wide" not in model.domains

    def full(form: object, packs: object) -> dict[str, np.ndarray]:
        raise MemoryError

    monkeypatch.setattr("prunion.runtime.graph.GraphForm._tables", full)
    with pytest.raises(InputError, match="4 domains with up to 7 classes each take 0 MiB"):
        model.add_domain(make_pack(bundle_path, "late", 1))


def test_a_wide_bundle_is_held_to_its_graph_before_tables_are_made(
    own_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = make_pack(own_bundle, "digits", 1, classes=9)
    manifest = read_json(own_bundle / "manifest.json")
    file = own_bundle / manifest["domains"][2]["pack"]
    write_pack(file, pack)
    manifest["domains"][2]["classes"] = list(pack.classes)
    manifest["files"][manifest["domains"][2]["pack"]] = sha256_file(file)
    write_json(own_bundle / "manifest.json", manifest)
    monkeypatch.setattr("prunion.runtime.graph.GraphForm.tables", None)
    with pytest.raises(BundleError, match="its table head_bias is not its packs'"):
        load(own_bundle, backend="cpu", threads=1)


@pytest.mark.parametrize("turns", [200, pytest.param(1000, marks=pytest.mark.slow)])
def test_hundreds_of_times_under_load(
    bundle_path: Path, toy: ModuleType, batch: np.ndarray, turns: int
) -> None:
    model = load(bundle_path, "cpu", threads=1)
    packs = [make_pack(bundle_path, f"new{i}", i, classes=3 + i) for i in range(4)]
    own = [open_bundle(bundle_path).pack(name) for name in model.domains]
    truth = {pack.name: expected(toy, pack, batch) for pack in (*own, *packs)}
    load_ = Load(model, batch, truth)
    for thread in load_.threads:
        thread.start()
    sizes = []
    try:
        # On a busy machine the readers may be slow: go on until they have answered enough.
        deadline = time.monotonic() + 60
        for turn in itertools.count():
            if turn >= turns and (load_.answers > 100 or time.monotonic() > deadline):
                break
            pack = packs[turn % 4]
            model.add_domain(pack)
            model.remove_domain(pack.name if turn % 2 else model.domain_index(pack.name))
            if (turn + 1) % (turns // 10) == 0:
                gc.collect()
                sizes.append(rss_bytes())
    finally:
        load_.stop.set()
        for thread in load_.threads:
            thread.join()
    assert load_.failures == []
    assert load_.answers > 100
    assert load_.unknown > 0, "no request ever met a domain that was gone"
    assert model.domains == ("flowers", "signs", "digits")
    assert max(sizes[5:]) - max(sizes[:3]) < 8 << 20, sizes
