"""A folder's `SHA256SUMS` hold for packs that were there before them, watched or read on demand."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType

import pytest

from prunion.runtime.batching import Catalogue, PackCache, PackFolder, Watcher
from prunion.runtime.batching.folder import UnreadError
from prunion.runtime.errors import BundleError
from prunion.runtime.model import Model
from tests.runtime.batching.marked import pack, put, unreadable, write_sums

pytest.importorskip("onnxruntime")


@pytest.fixture(autouse=True)
def _look_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunion.runtime.batching.packs.LOOK_AGAIN", -1.0)


def wrong_sums(folder: PackFolder, *names: str, old: bool = False) -> Path:
    """Sums that have another hash for each of the names, and nothing for any other."""
    file = folder.path / "SHA256SUMS"
    file.write_text("".join(f"{'0' * 64}  {name}.safetensors\n" for name in names) or "\n")
    if old:
        os.utime(file, (1e9, 1e9))
    return file


def test_a_watched_pack_that_later_sums_refuse_goes(
    catalogue: Catalogue,
    watcher: Watcher,
    folder: PackFolder,
    toy: ModuleType,
    caplog: pytest.LogCaptureFixture,
) -> None:
    own = catalogue.at([1])
    for name in ("late", "signs"):
        put(folder, pack(toy, name, 1))
    watcher.look()
    assert catalogue.watched == ("late", "signs")
    wrong_sums(folder, "late", "signs", "other")
    for _ in range(3):
        watcher.look()
    assert not catalogue.watched and catalogue.find("late") is None
    assert catalogue.at([1]) == own, "what it took the place of answers again"
    assert caplog.text.count("late.safetensors differs from SHA256SUMS") == 1
    write_sums(folder)
    watcher.look()
    assert set(catalogue.watched) == {"late", "signs"}
    (folder.path / "SHA256SUMS").unlink()
    watcher.look()
    assert set(catalogue.watched) == {"late", "signs"}


def test_what_later_sums_allow_stays_as_it_is(
    catalogue: Catalogue, watcher: Watcher, folder: PackFolder, toy: ModuleType
) -> None:
    put(folder, pack(toy, "late", 1))
    watcher.look()
    first = catalogue.find("late")
    write_sums(folder)
    watcher.look()
    assert first is not None and catalogue.find("late") is first, "it was not read again"
    catalogue.unload("late")
    wrong_sums(folder, "late")
    watcher.look()
    write_sums(folder)
    watcher.look()
    assert catalogue.find("late") is None, "a client unloaded it, and the pack is the same"


def test_a_line_that_may_be_on_its_way_takes_no_pack(
    catalogue: Catalogue,
    watcher: Watcher,
    folder: PackFolder,
    toy: ModuleType,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`sha256sum *.safetensors > SHA256SUMS` leaves an empty file first."""
    monkeypatch.setattr("prunion.runtime.batching.folder.WRITING", 1e18)
    put(folder, pack(toy, "late", 1))
    cache = PackCache(folder, catalogue.model, 1 << 20)
    first = cache.read("late")
    watcher.look()
    sums = wrong_sums(folder)
    watcher.look()
    assert catalogue.watched == ("late",) and cache.read("late") is first
    assert "is not in" not in caplog.text
    monkeypatch.setattr("prunion.runtime.batching.folder.WRITING", 0)
    watcher.look()
    assert not catalogue.watched and caplog.text.count("late.safetensors is not in SHA256SUMS") == 1
    with pytest.raises(BundleError, match="is not in SHA256SUMS"):
        cache.read("late")
    sums.unlink()
    watcher.look()
    assert catalogue.watched == ("late",) and cache.read("late") is not None


def test_what_a_refused_file_left_served_goes_with_later_sums(
    catalogue: Catalogue, watcher: Watcher, folder: PackFolder, toy: ModuleType
) -> None:
    put(folder, pack(toy, "late", 1))
    write_sums(folder)
    watcher.look()
    first = catalogue.find("late")
    (folder.path / "late.safetensors").write_bytes(b"half a pack")
    watcher.look()
    assert first is not None and catalogue.find("late") is first, "its sums are still there"
    wrong_sums(folder, old=True)
    watcher.look()
    assert catalogue.find("late") is None


@pytest.mark.parametrize("lost", [True, False])
def test_sums_that_cannot_be_read_change_nothing(
    catalogue: Catalogue,
    watcher: Watcher,
    folder: PackFolder,
    toy: ModuleType,
    caplog: pytest.LogCaptureFixture,
    lost: bool,
) -> None:
    put(folder, pack(toy, "early", 1))
    cache = PackCache(folder, catalogue.model, 1 << 20)
    first = cache.read("early")
    watcher.look()
    put(folder, pack(toy, "late", 1))
    sums = folder.path / "SHA256SUMS"
    with pytest.MonkeyPatch.context() as patch:
        if lost:
            sums.symlink_to("nowhere")
        else:
            write_sums(folder)
            patch.setattr(os, "open", unreadable)
        for _ in range(3):
            watcher.look()
        assert catalogue.watched == ("early",), "it stays, and no other is taken"
        assert caplog.text.count("meanwhile no pack is taken, and what is served stays") == 1
        if lost:
            assert cache.read("early") is first
        with pytest.raises(UnreadError):
            cache.read("late")
        sums.unlink()
    watcher.look()
    assert set(catalogue.watched) == {"early", "late"} and cache.read("late") is not None


def test_sums_hold_for_packs_in_memory(model: Model, folder: PackFolder, toy: ModuleType) -> None:
    put(folder, pack(toy, "late", 1))
    cache = PackCache(folder, model, 1 << 20)
    first = cache.read("late")
    write_sums(folder)
    assert cache.read("late") is first and cache.resident("late") is first
    assert cache.statistics.pack_reads.count == 1, "its hash is known"
    wrong_sums(folder, "late", "other")
    assert cache.resident("late") is None
    for _ in range(2):
        with pytest.raises(BundleError, match="differs from SHA256SUMS"):
            cache.read("late")
    assert len(cache) == cache.bytes == 0
    write_sums(folder)
    assert cache.read("late") is not None
