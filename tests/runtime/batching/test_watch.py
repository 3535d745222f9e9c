"""A watched folder: what comes, goes, is broken, or cannot be looked at for a moment."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType

import pytest

from prunion.runtime.batching import Catalogue, PackFolder, Watcher
from prunion.runtime.errors import BundleError, DomainError, InputError
from prunion.runtime.model import Model
from tests.runtime.batching.marked import pack, put, unreadable, write_sums

pytest.importorskip("onnxruntime")
OPEN = os.open


def opened(path: str, unread: str) -> int:
    """A file's handle, unless it is the one that the system does not give."""
    if Path(path).name == unread:
        unreadable()
    return OPEN(path, os.O_RDONLY)


def mark(catalogue: Catalogue, name: str) -> float:
    """The first logit's bias of the domain that answers."""
    return float(catalogue.read(name).pack.head_bias[0])


def test_a_watched_folder(
    model: Model, folder: PackFolder, toy: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    catalogue = Catalogue(model, [folder])
    watcher = Watcher(folder, catalogue)
    watcher.look()
    file = put(folder, pack(toy, "late", 1))
    (folder.path / "bad.safetensors").write_bytes(b"half a pack")
    watcher.look()
    first = catalogue.find("late")
    assert first is not None and "bad.safetensors" in caplog.text
    caplog.clear()
    watcher.look()
    assert catalogue.find("late") is first and not caplog.text, "nothing changed"
    put(folder, pack(toy, "late", 2))
    put(folder, pack(toy, "bad"))
    watcher.look()
    second = catalogue.find("late")
    assert second is not None and second.pack.head_bias[0] == 2
    assert catalogue.find("bad") is not None, "it was finished since"
    file.unlink()
    watcher.look()
    assert catalogue.find("late") is None
    assert catalogue.find("signs") is not None


def test_a_watched_pack_has_a_name_and_no_index(
    model: Model, folder: PackFolder, toy: ModuleType
) -> None:
    """Two processes need not see packs in one order: no index can mean the same in both."""
    first, second = (Catalogue(model, watched_folder=folder) for _ in range(2))
    watchers = [Watcher(folder, x) for x in (first, second)]
    put(folder, pack(toy, "zebra"))
    watchers[0].look()
    put(folder, pack(toy, "apple"))
    for watcher in watchers:
        watcher.look()
    for catalogue in (first, second):
        assert {x.name for x in catalogue.domains[3:]} == {"apple", "zebra"}
        assert catalogue.names == ("flowers", "signs", "digits")
        with pytest.raises(DomainError, match=r"index 3 is outside 0\.\.2.*names, but no index"):
            catalogue.at([3])


def test_what_a_pack_took_the_place_of_comes_back(
    catalogue: Catalogue, watcher: Watcher, folder: PackFolder, toy: ModuleType
) -> None:
    own = catalogue.at([1])
    file = put(folder, pack(toy, "signs", 7))
    watcher.look()
    assert mark(catalogue, "signs") == 7 and catalogue.at([1]) != own
    file.unlink()
    watcher.look()
    assert catalogue.at([1]) == own and catalogue.names == ("flowers", "signs", "digits")


def test_sums_may_be_written_after_the_pack(
    catalogue: Catalogue,
    watcher: Watcher,
    folder: PackFolder,
    toy: ModuleType,
    caplog: pytest.LogCaptureFixture,
) -> None:
    put(folder, pack(toy, "one"))
    write_sums(folder)
    watcher.look()
    put(folder, pack(toy, "two"))
    for _ in range(3):
        watcher.look()
    assert catalogue.find("two") is None
    assert caplog.text.count("is not in SHA256SUMS") == 1, "it is said once"
    write_sums(folder)
    watcher.look()
    assert catalogue.find("two") is not None


def test_a_pack_that_cannot_be_looked_at_keeps_no_other_waiting(
    catalogue: Catalogue,
    watcher: Watcher,
    folder: PackFolder,
    toy: ModuleType,
    caplog: pytest.LogCaptureFixture,
) -> None:
    put(folder, pack(toy, "early", 1))
    watcher.look()
    put(folder, pack(toy, "late", 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "stat", unreadable)
        for _ in range(3):
            watcher.look()
    assert catalogue.find("early") is not None, "it is not gone"
    assert caplog.text.count("late.safetensors cannot be read (Too many open files)") == 1
    watcher.look()
    assert mark(catalogue, "late") == 1


def test_no_bundle_comes_that_would_lack_a_pack(
    model: Model, catalogue: Catalogue, watcher: Watcher, folder: PackFolder, toy: ModuleType
) -> None:
    put(folder, pack(toy, "early", 1))
    watcher.look()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "stat", unreadable)
        with pytest.raises(BundleError, match="the pack of 'early' cannot be read now"):
            watcher.take(Catalogue(model, watched_folder=folder))
    assert watcher.catalogue is catalogue and catalogue.find("early") is not None
    put(folder, pack(toy, "early", 2))
    watcher.look()
    assert mark(catalogue, "early") == 2, "it is followed as before"


@pytest.mark.parametrize("unread", ["late.safetensors", "SHA256SUMS"])
def test_a_pack_that_could_not_be_read_is_tried_again(
    catalogue: Catalogue,
    watcher: Watcher,
    folder: PackFolder,
    toy: ModuleType,
    caplog: pytest.LogCaptureFixture,
    unread: str,
) -> None:
    put(folder, pack(toy, "late", 1))
    write_sums(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", lambda path, *_: opened(path, unread))
        for _ in range(3):
            watcher.look()
    assert catalogue.find("late") is None
    assert caplog.text.count("Too many open files") == 1, "it is said once"
    watcher.look()
    assert mark(catalogue, "late") == 1


def test_a_folder_that_cannot_be_listed_is_not_empty(
    catalogue: Catalogue,
    watcher: Watcher,
    folder: PackFolder,
    toy: ModuleType,
    model: Model,
    caplog: pytest.LogCaptureFixture,
) -> None:
    file = put(folder, pack(toy, "late", 1))
    watcher.look()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "iterdir", unreadable)
        for _ in range(3):
            watcher.look()
        assert mark(catalogue, "late") == 1
        assert caplog.text.count("cannot be listed") == 1, "it is said once"
        assert ("late", True) in {(x.name, x.ready) for x in catalogue.index()}
        with pytest.raises(BundleError, match="cannot be listed"):
            watcher.take(Catalogue(model, watched_folder=folder))
    assert watcher.catalogue is catalogue
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PackFolder, "stamp", lambda *_: None)  # listed, and not to be looked at
        watcher.look()
    assert mark(catalogue, "late") == 1
    file.unlink()
    watcher.look()
    assert catalogue.find("late") is None


def test_what_a_client_unloads_stays_so_until_its_pack_changes(
    catalogue: Catalogue, watcher: Watcher, folder: PackFolder, toy: ModuleType, model: Model
) -> None:
    file = put(folder, pack(toy, "signs", 1))
    put(folder, pack(toy, "late", 1))
    watcher.look()
    catalogue.unload("signs")
    watcher.look()
    assert catalogue.find("signs") is None, "the bundle's own would be a surprise"
    other = Catalogue(model, watched_folder=folder)
    other.carry_over(catalogue)
    watcher.take(other)
    assert other.find("signs") is None and mark(other, "late") == 1
    put(folder, pack(toy, "signs", 2))
    watcher.look()
    assert mark(other, "signs") == 2
    file.unlink()
    watcher.look()
    assert other.find("signs") is None
    other.load("signs")
    assert other.at([1])[0].pack.classes == toy.CLASSES["signs"]
    put(folder, pack(toy, "signs", 3))
    other.unload("signs")
    other.load("signs")
    assert mark(other, "signs") == 3, "a client need not wait for the next look"
    (folder.path / "signs.safetensors").unlink()
    watcher.look()
    assert other.at([1])[0].pack.classes == toy.CLASSES["signs"]


def test_an_unload_outlives_a_bundle_that_came_while_nothing_could_be_listed(
    catalogue: Catalogue, watcher: Watcher, folder: PackFolder, toy: ModuleType, model: Model
) -> None:
    put(folder, pack(toy, "late", 1))
    watcher.look()
    catalogue.unload("late")
    other = Catalogue(model, watched_folder=folder)
    other.carry_over(catalogue)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "iterdir", unreadable)
        watcher.take(other)
    watcher.look()
    assert watcher.catalogue is other and other.find("late") is None


def test_no_pack_takes_the_name_of_the_bundles_model(
    catalogue: Catalogue,
    watcher: Watcher,
    folder: PackFolder,
    toy: ModuleType,
    caplog: pytest.LogCaptureFixture,
) -> None:
    put(folder, pack(toy, "toy"))
    watcher.look()
    watcher.look()
    assert catalogue.find("toy") is None
    assert caplog.text.count("'toy' is the name of the bundle's own model") == 1
    assert "toy" not in {x.name for x in catalogue.index()}
    with pytest.raises(InputError, match="under another name"):
        catalogue.put(catalogue.model.admit(pack(toy, "toy")))
