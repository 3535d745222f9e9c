"""Archives and folders as people pack them again, or leave them lying about."""

from __future__ import annotations

import errno
import io
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from prunion.benchmarks.reproduce.archives.decathlon import open_decathlon
from prunion.benchmarks.reproduce.archives.unpack import unpack
from prunion.runtime.errors import OutputError
from tests.benchmarks.reproduce.archives.small import coloured, write_decathlon

DATA = "decathlon-1.0-data.tar.gz"
Members = list[tuple[str, bytes]]


def members(content: bytes) -> Members:
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        files = ((x.name, tar.extractfile(x)) for x in tar if x.isreg())
        return [(name, file.read()) for name, file in files if file is not None]


def pack(files: Iterable[tuple[str, bytes]], mode: str = "w:gz") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as tar:  # type: ignore[call-overload]
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def of_a_mac(folder: Path) -> None:
    """Each file, and each archive, with its `._` before it; all of them below `./`."""
    for archive in list(folder.glob("*.tar*")):
        beside = []
        for name, content in members(archive.read_bytes()):
            place, _, last = f"./{name}".rpartition("/")
            beside += [(f"{place}/._{last}", b"\0\5\x16\7 of a Mac"), (f"./{name}", content)]
        archive.write_bytes(pack(beside))
        (folder / f"._{archive.name}").write_bytes(b"\0\5\x16\7 of a Mac")


def below(place: str) -> Callable[[Path], None]:
    """The domains' images in one archive, below a folder."""

    def change(folder: Path) -> None:
        tars = members((folder / DATA).read_bytes())
        images = [x for _, content in tars for x in members(content)]
        (folder / DATA).write_bytes(pack((place + name, content) for name, content in images))

    return change


def begun(folder: Path) -> None:
    """Folders that somebody began to unpack to, and notes beside the archives."""
    (folder / "data" / "gtsrb").mkdir(parents=True)
    (folder / "decathlon-1.0" / "data" / "dtd" / "train").mkdir(parents=True)
    (folder / f"{DATA}.md5").write_text("d41d8cd98f00b204e9800998ecf8427e")
    (folder / "other.tar.part").write_bytes(b"half")


@pytest.mark.parametrize(
    "change", [of_a_mac, below("data/"), below("decathlon-1.0/data/"), below("x/"), begun]
)
def test_no_domain_is_lost(tmp_path: Path, change: Callable[[Path], None]) -> None:
    """They were left out with a line each, or their archives called damaged."""
    parts = {x: coloured(["2", "10"], 3, seed) for seed, x in enumerate(("train", "val", "test"))}
    write_decathlon(tmp_path / "data", {"gtsrb": parts, "dtd": parts, "imagenet12": parts})
    change(tmp_path / "data")
    opened = open_decathlon(tmp_path / "data", tmp_path / "work")
    assert [x.name for x in opened] == ["imagenet12", "dtd", "gtsrb"]
    assert not list((tmp_path / "work").rglob("._*"))


def test_a_full_disk_is_no_damaged_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.tar").write_bytes(pack([("a/b.jpg", b"image")], "w"))

    def full(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "mkdir", full)
    place = tmp_path / "out" / "b.jpg"
    with pytest.raises(OutputError, match=r"b\.jpg cannot be written .*No space.* with -o$"):
        unpack([tmp_path / "x.tar"], {"a/b.jpg": place}, 100)
    monkeypatch.undo()
    place.parent.mkdir()
    monkeypatch.setattr(Path, "open", lambda path, mode="r": Full(path, mode))
    with pytest.raises(OutputError, match=r"b\.jpg cannot be written .*No space.* with -o$"):
        unpack([tmp_path / "x.tar"], {"a/b.jpg": place}, 100)
    assert list(place.parent.iterdir()) == []


class Full(io.FileIO):
    """A file on a full disk."""

    def write(self, data: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")
