"""What names and indices mean, whatever is loaded, unloaded, or replaced."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from prunion.runtime.base import read_json, write_json
from prunion.runtime.batching import Catalogue, PackCache, PackFolder, RefusedPackError
from prunion.runtime.batching.layers import rows_after
from prunion.runtime.errors import DomainError
from prunion.runtime.model import Model, load
from tests.runtime.batching.marked import pack, put

pytest.importorskip("onnxruntime")


@pytest.fixture
def other(bundle_path: Path) -> Iterator[Model]:
    """What is loaded in the place of `model`."""
    with load(bundle_path, backend="cpu", threads=1) as model:
        yield model


def test_an_index_is_never_that_of_another_domain(
    model: Model, folder: PackFolder, toy: ModuleType
) -> None:
    catalogue = Catalogue(model, [folder])
    flowers, signs, digits = catalogue.at([0, 1, 2])
    put(folder, pack(toy, "late"))
    put(folder, pack(toy, "later"))
    catalogue.load("late")
    catalogue.unload("signs")
    catalogue.unload("late")
    assert catalogue.names == ("flowers", "", "digits", "")
    assert catalogue.at([0, 2]) == [flowers, digits]
    for index in (1, 3):
        with pytest.raises(DomainError, match=f"no domain at index {index}"):
            catalogue.at([0, index])
    catalogue.load("later")
    catalogue.load("late")
    catalogue.load("signs")
    assert catalogue.at([0, 1, 2]) == [flowers, signs, digits]
    assert catalogue.names == ("flowers", "signs", "digits", "late", "later")
    model.remove_domain("flowers")
    assert catalogue.at([1, 2]) == [signs, digits] and catalogue.names[0] == ""


@pytest.mark.parametrize(
    ("before", "own", "after"),
    [
        ("abc", "abc", "a b c"),
        ("ab", "abc", "a b c"),
        ("abc", "ab", "a b c"),
        ("abc", "ac", "a - c"),  # a server that starts now has c at 1
        ("ab", "ba", "- -"),
        ("abx", "abcx", "a b - x"),  # x was loaded
    ],
)
def test_indices_when_another_bundle_comes(before: str, own: str, after: str) -> None:
    assert rows_after(tuple(before), own) == tuple(after.replace("-", "").split(" "))


def test_what_clients_did_outlives_the_bundle(
    model: Model, other: Model, folder: PackFolder, toy: ModuleType
) -> None:
    old, new = Catalogue(model, [folder]), Catalogue(other, [folder])
    for name in ("signs", "late", "gone"):
        put(folder, pack(toy, name, 5))
        old.load(name)
    old.unload("digits")
    (folder.path / "gone.safetensors").unlink()
    new.carry_over(old)
    assert [x.pack.head_bias[0] for x in new.at([1, 3])] == [5, 5]
    assert new.names == ("flowers", "signs", "", "late", "")
    (folder.path / "signs.safetensors").unlink()
    new.load("signs")
    new.load("digits")
    assert new.at([1, 2]) == list(other.snapshot.domains[1:])


def test_indices_are_told_that_another_bundle_gives_to_others(
    model: Model,
    other: Model,
    folder: PackFolder,
    toy: ModuleType,
    caplog: pytest.LogCaptureFixture,
) -> None:
    put(folder, pack(toy, "late"))
    old, new = Catalogue(model, [folder]), Catalogue(other, [folder])
    old.load("late")
    other.remove_domain("signs")
    new = Catalogue(other, [folder])
    new.carry_over(old)
    assert "indices 1 would mean other domains" in caplog.text
    with pytest.raises(DomainError, match="another one in the bundle before"):
        new.at([1])
    assert [x.name for x in new.at([0, 2, 3])] == ["flowers", "digits", "late"]


def test_a_pack_on_demand_can_be_unloaded(
    model: Model, other: Model, folder: PackFolder, toy: ModuleType
) -> None:
    put(folder, pack(toy, "late"))
    catalogue = Catalogue(model, cache=PackCache(folder, model, 1 << 20))

    def ready(catalogue: Catalogue) -> bool:
        return {x.name: x.ready for x in catalogue.index()}["late"]

    for asked in (False, True):
        assert ready(catalogue) and catalogue.knows("late")
        if asked:
            catalogue.read("late")
        catalogue.unload("late")
        new = Catalogue(other, cache=PackCache(folder, other, 1 << 20))
        new.carry_over(catalogue)
        for x in (catalogue, new):
            assert not ready(x) and not x.knows("late") and x.find("late") is None
            with pytest.raises(DomainError, match="no domain 'late'"):
                x.read("late")
            with pytest.raises(DomainError, match="no domain 'late'"):
                x.unload("late")
        catalogue.load("late")
        assert catalogue.read("late").name == "late"


def test_a_pack_that_cannot_answer_is_not_ready_until_it_is_another(
    model: Model, folder: PackFolder, toy: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prunion.runtime.batching.folder.SETTLED", 0)  # as if it lay there long
    put(folder, pack(toy, "late"))
    file = folder.path / "late.safetensors"
    sound = file.read_bytes()
    file.write_bytes(b"half a pack")
    (folder.path / "folder.safetensors").mkdir()
    catalogue = Catalogue(model, cache=PackCache(folder, model, 1 << 20))
    assert [x.name for x in catalogue.index()][-1] == "late", "a folder is no pack"
    with pytest.MonkeyPatch.context() as patch:
        for _ in range(2):  # the second time from memory
            with pytest.raises(RefusedPackError, match="late"):
                catalogue.read("late")
            patch.setattr(PackFolder, "read_hashed", lambda *_: pytest.fail("read again"))
        listed = catalogue.index()[-1]
        assert not listed.ready and listed.reason == catalogue.refused("late")
    file.write_bytes(sound)
    assert not catalogue.refused("late") and catalogue.index()[-1].ready
    assert catalogue.read("late").name == "late"


def test_packs_on_demand_that_the_bundle_hides(
    model: Model, folder: PackFolder, toy: ModuleType
) -> None:
    for name in ("signs", "late", "toy"):
        put(folder, pack(toy, name))
    catalogue = Catalogue(model, cache=PackCache(folder, model, 1 << 20))
    assert catalogue.shadowed() == ["signs", "toy"]
    assert [x.name for x in catalogue.index()] == ["flowers", "signs", "digits", "late"]
    assert catalogue.find("signs") is model.snapshot.domains[1] and not catalogue.knows("toy")


def test_a_bundle_that_is_named_like_one_of_its_domains(own_bundle: Path) -> None:
    file = own_bundle / "manifest.json"
    write_json(file, read_json(file) | {"name": "signs"})
    with load(own_bundle, backend="cpu", threads=1) as model:
        assert Catalogue(model).bundle_name == "signs.bundle"
