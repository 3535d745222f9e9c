"""A folder that others lay files in: what is no file there, too large, or a link to nowhere."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from prunion.runtime.batching import PackFolder
from prunion.runtime.batching.folder import Sums, UnreadError
from prunion.runtime.errors import BundleError
from tests.runtime.batching.marked import pack, put
from tests.support.waiting import LONG


def socket_at(path: Path) -> None:
    # By a short name, as a socket's path has no more than about a hundred characters.
    with socket.socket(socket.AF_UNIX) as made:
        before = Path.cwd()
        os.chdir(path.parent)
        try:
            made.bind(path.name)
        finally:
            os.chdir(before)


STRANGE: dict[str, Callable[[Path], None]] = {
    "pipe": os.mkfifo,
    "folder": Path.mkdir,
    "socket": socket_at,
}


def told(call: Callable[[], object]) -> str:
    """What a call raises; it fails, and does not wait for ever, where the call does."""
    found: list[str] = []

    def run() -> None:
        try:
            call()
        except BundleError as exc:
            found.append(f"{type(exc).__name__}: {exc}")

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(LONG)
    assert found, "it waits" if thread.is_alive() else "it raised nothing"
    return found[0]


@pytest.mark.parametrize("make", STRANGE.values(), ids=STRANGE)
def test_what_is_no_file_is_refused_and_nobody_waits(
    folder: PackFolder, toy: ModuleType, make: Callable[[Path], None]
) -> None:
    make(folder.path / "odd.safetensors")
    reason = told(lambda: folder.read("odd"))
    assert reason.startswith("BundleError: odd.safetensors is a folder, a pipe or a device")
    put(folder, pack(toy, "one"))
    make(folder.path / "SHA256SUMS")
    assert "SHA256SUMS is a folder, a pipe or a device" in told(lambda: folder.read("one"))


def test_a_pipe_that_is_laid_there_after_the_look(
    folder: PackFolder, toy: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = put(folder, pack(toy, "one"))
    os.mkfifo(folder.path / "odd.safetensors")
    monkeypatch.setattr(Path, "stat", lambda *_, **__: os.stat(file))
    assert "odd.safetensors is a folder, a pipe" in told(lambda: folder.read_hashed("odd", Sums()))


def test_what_is_too_large_is_not_read(
    folder: PackFolder, toy: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(folder, pack(toy, "one"))
    with (folder.path / "large.safetensors").open("wb") as file:
        file.truncate((256 << 20) + 1)
    with pytest.raises(BundleError, match=r"large\.safetensors is larger than 256 MiB"):
        folder.read("large")
    with (folder.path / "SHA256SUMS").open("wb") as file:
        file.truncate((64 << 20) + 1)
    with pytest.raises(BundleError, match="SHA256SUMS is larger than 64 MiB"):
        folder.read("one")


def test_sums_whose_link_is_lost_are_not_none(folder: PackFolder, toy: ModuleType) -> None:
    put(folder, pack(toy, "one"))
    sums = folder.path / "SHA256SUMS"
    for target in ("nowhere/SHA256SUMS", "SHA256SUMS"):  # the second is a link to itself
        sums.symlink_to(target)
        for ask in (folder.sums_stamp, folder.sums, lambda: folder.read("one")):
            with pytest.raises(UnreadError, match="SHA256SUMS is a link to where nothing is"):
                ask()
        sums.unlink()
    assert folder.sums() == Sums() and folder.read("one").name == "one"


def test_sums_that_are_no_text(folder: PackFolder, toy: ModuleType) -> None:
    put(folder, pack(toy, "one"))
    (folder.path / "SHA256SUMS").write_bytes(b"\xff" * 80)
    with pytest.raises(BundleError, match=r"SUMS cannot be read .*: write it again") as raised:
        folder.read("one")
    assert not isinstance(raised.value, UnreadError), "it would not be otherwise the next time"
