"""Domains that come and go: read on demand, watched, loaded; never confused with one another."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from prunion.runtime.batching import Catalogue, PackCache, PackFolder
from prunion.runtime.batching.folder import UnreadError
from prunion.runtime.batching.layers import Layers
from prunion.runtime.batching.packs import LOOK_AGAIN, pack_bytes
from prunion.runtime.bundle import write_pack
from prunion.runtime.errors import BundleError, DomainError, InputError
from prunion.runtime.model import LiveDomain, Model
from prunion.runtime.serve.guard import refusal_of
from tests.runtime.batching.marked import pack, put, unreadable

pytest.importorskip("onnxruntime")


@pytest.fixture(autouse=True)
def _look_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunion.runtime.batching.packs.LOOK_AGAIN", -1.0)


def test_packs_are_read_when_they_are_asked_for_and_the_oldest_leave(
    model: Model, folder: PackFolder, toy: ModuleType
) -> None:
    assert LOOK_AGAIN > 0
    packs = [pack(toy, f"d{n}", n) for n in range(6)]
    for x in packs:
        put(folder, x)
    cache = PackCache(folder, model, 3 * pack_bytes(packs[0]), stay=["d0"])
    found = {}
    for x in packs:
        found[x.name] = cache.read(x.name)
        assert cache.bytes <= cache.limit
    assert len(cache) == 3
    assert cache.resident("d0") is found["d0"], "it is never to leave"
    assert cache.resident("d5") is found["d5"] and cache.resident("d1") is None
    again = cache.read("d1")
    assert again is not None and again.pack.head_bias[0] == 1
    assert again is not found["d1"], "what was read anew is another domain"
    assert cache.statistics.pack_reads.count == 7
    assert cache.read("unknown") is None


def test_a_file_that_changed_is_another_domain(
    model: Model, folder: PackFolder, toy: ModuleType, batch: np.ndarray
) -> None:
    put(folder, pack(toy, "late", 100))
    cache = PackCache(folder, model, 1 << 20)
    first = cache.read("late")
    assert first is not None and cache.read("late") is first
    put(folder, pack(toy, "late", 200))
    second = cache.read("late")
    assert second is not None and second.serial != first.serial
    # What was accepted for the first is answered by the first, though both have one name.
    answers = model.answer(np.repeat(batch[:1], 2, axis=0), [first, second])
    assert answers[1, 0] - answers[0, 0] == pytest.approx(100, abs=0.01)


def test_a_file_that_cannot_be_looked_at_is_not_gone(
    model: Model,
    folder: PackFolder,
    toy: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    put(folder, pack(toy, "late", 1))
    put(folder, pack(toy, "later", 1))
    cache = PackCache(folder, model, 1 << 20)
    first = cache.read("late")
    monkeypatch.setattr(Path, "stat", unreadable)
    assert first is not None and cache.read("late") is first
    assert "late.safetensors cannot be read (Too many open files): 'late' is served" in caplog.text
    with pytest.raises(UnreadError, match="cannot be read"):
        cache.read("later")
    with pytest.raises(UnreadError) as told:
        Catalogue(model, [folder]).load("later")
    refusal = refusal_of(told.value)
    assert (refusal.status, refusal.code) == (503, "UNAVAILABLE"), "it is not the client's fault"
    asked = Catalogue(model, cache=cache)
    assert asked.knows("later"), "it may well be there"


@pytest.mark.parametrize(
    "name", ["../x", "a/b", ".hidden", "a\0b", "", "x" * 300, "ü" * 190, "C:x", "a\\b"]
)
def test_a_name_leads_nowhere_else(model: Model, folder: PackFolder, name: str) -> None:
    assert folder.stamp(name) is None
    assert PackCache(folder, model, 1 << 20).read(name) is None
    with pytest.raises(BundleError):
        folder.read(name)


def test_packs_that_cannot_be_taken(folder: PackFolder, toy: ModuleType, tmp_path: Path) -> None:
    put(folder, pack(toy, "one"), file="other")
    with pytest.raises(BundleError, match="holds the domain 'one'"):
        folder.read("other")
    (folder.path / "bad.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(BundleError, match="no readable pack"):
        folder.read("bad")
    outside = tmp_path / "away.safetensors"
    write_pack(outside, pack(toy, "away"))
    (folder.path / "away.safetensors").symlink_to(outside)
    with pytest.raises(BundleError, match="outside"):
        folder.read("away")


def test_sums_are_held_to_if_there_are_any(folder: PackFolder, toy: ModuleType) -> None:
    file = put(folder, pack(toy, "one"))
    put(folder, pack(toy, "two"))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    (folder.path / "SHA256SUMS").write_text(f"{digest}  one.safetensors\n")
    assert folder.read("one").name == "one"
    with pytest.raises(BundleError, match="not in SHA256SUMS"):
        folder.read("two")
    put(folder, pack(toy, "one", 5))
    with pytest.raises(BundleError, match="differs from SHA256SUMS"):
        folder.read("one")


def test_load_and_unload(model: Model, folder: PackFolder, toy: ModuleType) -> None:
    catalogue = Catalogue(model, [folder])
    with pytest.raises(DomainError, match="folders"):
        catalogue.load("late")
    put(folder, pack(toy, "late", 1))
    assert ("late", False) in {(x.name, x.ready) for x in catalogue.index()}
    catalogue.load("late")
    before = catalogue.read("late")
    assert catalogue.at([3]) == [before]
    put(folder, pack(toy, "late", 2))
    catalogue.load("late")
    after = catalogue.read("late")
    assert after is not before and catalogue.at([3]) == [after], "it keeps its index"
    catalogue.unload("flowers")
    with pytest.raises(DomainError, match="no domain 'flowers'"):
        catalogue.read("flowers")
    catalogue.load("flowers")
    assert catalogue.read("flowers").pack.classes == toy.CLASSES["flowers"]
    for name in ("flowers", "signs", "digits"):
        catalogue.unload(name)
    with pytest.raises(InputError, match="last domain"):
        catalogue.unload("late")
    for index in (-1, 4, 10**30):
        with pytest.raises(DomainError, match="outside"):
            catalogue.at([index])


def test_domains_of_the_model_itself_are_followed(model: Model, toy: ModuleType) -> None:
    catalogue = Catalogue(model)
    model.add_domain(pack(toy, "late"))
    assert [x.name for x in catalogue.domains] == ["flowers", "signs", "digits", "late"]
    model.remove_domain("signs")
    assert [x.name for x in catalogue.domains] == ["flowers", "digits", "late"]


def test_packs_of_another_trunk_are_refused(
    model: Model, folder: PackFolder, toy: ModuleType
) -> None:
    put(folder, replace(pack(toy, "alien"), trunk_hash="cd" * 32))
    with pytest.raises(BundleError, match="trunk"):
        Catalogue(model, [folder]).load("alien")
    with pytest.raises(BundleError, match="trunk"):
        PackCache(folder, model, 1 << 20).read("alien")


def test_what_is_loaded_while_the_model_itself_changes_is_kept(
    model: Model, toy: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One thread loads, another adds a domain to the model, a third asks what there is."""
    catalogue, loaded = Catalogue(model), model.admit(pack(toy, "loaded"))
    asked: list[threading.Thread] = []
    make = Layers.with_loaded

    def slowly(now: Layers, domain: LiveDomain) -> Layers:
        if not asked:
            model.add_domain(pack(toy, "added"))
            asked.append(threading.Thread(target=lambda: catalogue.names))
            asked[0].start()
            asked[0].join(0.3)  # short: it may wait for who waits for it
        return make(now, domain)

    monkeypatch.setattr(Layers, "with_loaded", slowly)
    catalogue.put(loaded)
    asked[0].join(60)
    assert catalogue.names[-2:] == ("loaded", "added")
    with pytest.raises(DomainError, match="no domain 'none'"):
        model.remove_domain("added")
        catalogue.unload("none")
    assert catalogue.domains[-1] is loaded
    assert catalogue.names[-2:] == ("loaded", ""), "what follows it does not move up"
