"""A pack that was refused is taken once it is mended, however it was, and whatever was at fault."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from prunion.runtime.batching import Catalogue, PackCache, PackFolder, Watcher
from prunion.runtime.batching.folder import RefusedPackError, Stamp
from prunion.runtime.bundle import HeldFileError
from prunion.runtime.errors import BackendError
from prunion.runtime.model import Model
from tests.runtime.batching.marked import pack, put

pytest.importorskip("onnxruntime")

SETTLED = "prunion.runtime.batching.folder.SETTLED"


def refused(cache: PackCache) -> bool:
    try:
        return cache.read("late") is None
    except RefusedPackError:
        return True


def moved_over_its_link(file: Path) -> Callable[[], object]:
    """To the file that a link out of the folder led to, the link gives way."""
    outside = file.parent.parent / file.name
    file.rename(outside)
    file.symlink_to(outside)
    return lambda: outside.replace(file)


def written_over_with_its_time(file: Path) -> Callable[[], object]:
    """As `rsync -t --inplace --checksum` repairs a damaged copy."""
    sound, before = file.read_bytes(), file.stat()

    def write(data: bytes) -> None:
        file.write_bytes(data)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))

    write(sound[:-100] + b"\xff" * 100)
    return lambda: write(sound)


@pytest.mark.parametrize("damage", [moved_over_its_link, written_over_with_its_time])
@pytest.mark.parametrize("young", [False, True])
def test_a_mended_pack_is_taken(
    model: Model,
    folder: PackFolder,
    toy: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path], Callable[[], object]],
    young: bool,
) -> None:
    """The same inode, size and time of writing: it was refused for ever."""
    mend = damage(put(folder, pack(toy, "late")))
    cache = PackCache(folder, model, 1 << 20)
    if young:  # written twice within one step of the file system's clock
        known = folder.stamp("late")
        monkeypatch.setattr(PackFolder, "stamp", lambda *_: known)
    else:
        monkeypatch.setattr(SETTLED, 0)
    assert refused(cache) and cache.refused("late")
    mend()
    if not young:
        assert not cache.refused("late")
    assert not refused(cache)
    assert not cache.refused("late")


def test_who_waits_until_it_is_ready_does_not_wait_for_ever(
    model: Model, folder: PackFolder, toy: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(folder, pack(toy, "late")).write_bytes(b"half a pack")
    cache = PackCache(folder, model, 1 << 20)
    assert refused(cache) and cache.refused("late")
    monkeypatch.setattr(SETTLED, 0)
    assert not cache.refused("late"), "it may be another that cannot be told from it"
    assert refused(cache) and cache.refused("late"), "now it could be told"


@pytest.mark.parametrize("fault", [BackendError("no room"), HeldFileError("the graph is gone")])
def test_what_is_not_the_packs_fault_passes(
    model: Model,
    catalogue: Catalogue,
    watcher: Watcher,
    folder: PackFolder,
    toy: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    fault: Exception,
) -> None:
    def fail(*_: object) -> None:
        raise fault

    monkeypatch.setattr(SETTLED, 0)
    put(folder, pack(toy, "late"))
    cache = PackCache(folder, model, 1 << 20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Model, "admit", fail)
        watcher.look()
        assert refused(cache) and not cache.refused("late") and not catalogue.watched
    watcher.look()
    assert not refused(cache) and catalogue.watched == ("late",)


def test_sums_that_were_written_twice_at_once_are_read_again(
    folder: PackFolder, toy: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(folder, pack(toy, "late"))
    (folder.path / "SHA256SUMS").write_text(f"{'0' * 64}  late.safetensors\n")
    known = folder.sums()
    assert isinstance(known.stamp, Stamp)
    monkeypatch.setattr(PackFolder, "sums_stamp", lambda _: known.stamp)
    (folder.path / "SHA256SUMS").write_text(f"{'1' * 64}  late.safetensors\n")
    again = folder.sums(known)
    assert again.hashes["late.safetensors"] == "1" * 64
