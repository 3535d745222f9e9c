"""Files appear whole, with the user's own mode, on the disk, and never open to everybody."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from prunion.runtime.base import json_of, new_folder, read_json, replace_file, unlisted, write_json
from prunion.runtime.errors import BundleError, PrunionError

ROOT = Path(__file__).parents[4]
LISTED = ("config.txt", "1/model.onnx", "a/b/c.bin")
posix = pytest.mark.skipif(os.name != "posix", reason="modes of files are POSIX's")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@posix
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_what_is_written_has_the_mode_of_any_file_of_the_user(tmp_path: Path, mask: int) -> None:
    with umask(mask):
        write_json(tmp_path / "x.json", {})
        with replace_file(tmp_path / "x.safetensors") as temporary:
            save_file({"a": np.ones(3)}, temporary)
        with new_folder(tmp_path / "folder") as made:
            save_file({"a": np.ones(3)}, made / "x.safetensors")  # leaves mode 0600 itself
            (made / "inner").mkdir()
            write_json(made / "inner" / "x.json", {})
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len(files) == 4
    assert {mode(path) for path in files} == {0o666 & ~mask}
    assert {mode(p) for p in tmp_path.rglob("*") if p.is_dir()} == {0o777 & ~mask}


@posix
def test_a_file_that_is_replaced_gets_the_users_mode_too(tmp_path: Path) -> None:
    old = tmp_path / "x.json"
    old.write_text("")
    old.chmod(0o600)
    with umask(0o022):
        write_json(old, {})
    assert mode(old) == 0o644


@posix
def test_the_umask_of_the_process_is_never_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(mask: int) -> int:
        raise AssertionError("another thread's file would be open to everybody")

    monkeypatch.setattr(os, "umask", refuse)
    write_json(tmp_path / "x.json", {})
    with new_folder(tmp_path / "folder") as made:
        (made / "x").write_text("")
    for stage in ("runtime", "trainer", "exporter", "benchmarks"):
        for path in (ROOT / stage).rglob("*.py"):
            assert "os.umask" not in path.read_text("utf-8"), path


@posix
def test_a_link_in_a_new_folder_leaves_its_target_alone(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("")
    target.chmod(0o600)
    with new_folder(tmp_path / "folder") as made:
        (made / "link").symlink_to(target)
    assert mode(target) == 0o600


@posix
def test_files_are_synced_by_a_handle_that_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows answers EBADF for a handle that was opened for reading."""
    synced, real = [], os.fsync

    def windows(handle: int) -> None:
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        synced.append(os.fstat(handle).st_size)
        real(handle)

    monkeypatch.setattr(os, "fsync", windows)
    write_json(tmp_path / "x.json", {"a": 1})
    with new_folder(tmp_path / "folder") as made:
        (made / "x").write_bytes(b"12345")
        (made / "read only").write_bytes(b"123")
        (made / "read only").chmod(0o444)
    assert sorted(synced) == [3, 5, (tmp_path / "x.json").stat().st_size]


def test_what_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("old")
    with pytest.raises(RuntimeError), replace_file(tmp_path / "x") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    with pytest.raises(RuntimeError), new_folder(tmp_path / "folder") as made:
        (made / "x").write_text("half")
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_text() == "old"
    with pytest.raises(PrunionError, match="already exists"), new_folder(tmp_path / "x"):
        pass


@pytest.mark.parametrize(
    "text", ["", "{", "[" * 100_000, "1" * 5000, '"\ud800"'.encode("utf-8", "surrogatepass")]
)
def test_what_is_no_json_is_one_line(tmp_path: Path, text: str | bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BundleError, match="cannot be read as JSON") as caught:
        read_json(path, BundleError)
    assert "\n" not in str(caught.value)


TWICE = '{"a": {"b": 1, "c": 2, "b": 1}}'


def test_a_key_that_is_given_twice_is_refused(tmp_path: Path) -> None:
    """Python takes the last one, another reader the first."""
    (tmp_path / "x.json").write_text(TWICE)
    with pytest.raises(BundleError, match=r"x\.json cannot be read .*the key 'b' is given twice"):
        read_json(tmp_path / "x.json", BundleError)
    assert json_of('{"a": [{"b": 1}, {"b": 2}]}') == {"a": [{"b": 1}, {"b": 2}]}
    for text in ('\ufeff{"a": 1}'.encode(), '{"a": 1}'.encode("utf-16"), bytearray(b'{"a": 1}')):
        assert json_of(text) == {"a": 1}
    for text in ("", "{", '\ufeff{"a": 1}', TWICE, TWICE.encode("utf-32")):
        with pytest.raises(ValueError):
            json_of(text)


def test_many_keys_of_which_one_is_given_twice_take_no_time() -> None:
    """A stranger's request of a megabyte: the key is found in one look, not in one for each."""
    text = "{" + ",".join(f'"k{n}": 1' for n in (*range(100_000), 99_999)) + "}"
    begun = time.process_time()
    with pytest.raises(ValueError, match="'k99999' is given twice"):
        json_of(text)
    assert time.process_time() - begun < 5


def test_what_others_write_is_read_by_one_function() -> None:
    """Elsewhere JSON is of prunion's own making: read back at once, or told by its own process."""
    allowed = {
        *(
            "runtime/base/install.py",
            "runtime/measure/benchmark/fresh.py",
            "runtime/tensorrt/files.py",
        ),
        *("runtime/tensorrt/layers.py", "trainer/data/domains.py", "trainer/processes/group.py"),
        *(
            "trainer/run/record.py",
            "trainer/run/start.py",
            "trainer/run/folder/snapshot.py",
            "trainer/config/stored/changes.py",
        ),
    }
    found = {
        path.relative_to(ROOT).as_posix()
        for stage in ("runtime", "trainer", "exporter")
        for path in (ROOT / stage).rglob("*.py")
        if "json.load" in path.read_text("utf-8")
    }
    assert found == allowed, "use json_of, read_json or parse_json of runtime/base"


def test_a_name_that_is_no_utf_8_is_written_all_the_same(tmp_path: Path) -> None:
    """Of an image from an old archive; what had been measured of all of them was lost."""
    value = {"image": "caf\udce9.png", "class": "花"}
    write_json(tmp_path / "x.json", value)
    assert json.loads((tmp_path / "x.json").read_text("utf-8")) == value
    write_json(tmp_path / "x.json", {"class": "花"})
    assert "花" in (tmp_path / "x.json").read_text("utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for relative in LISTED:
        (tmp_path / relative).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / relative).write_text("own")
    return tmp_path


def test_what_is_listed_is_own_whether_all_of_it_is_there_or_not(folder: Path) -> None:
    (folder / "1" / ".DS_Store").touch()
    assert unlisted(folder, LISTED) == ""
    (folder / "1" / "model.onnx").unlink()
    assert unlisted(folder, LISTED) == ""


@pytest.mark.parametrize(
    ("foreign", "told"),
    [
        ("notes.md", "holds notes.md"),
        ("1/model.plan", "holds model.plan in 1"),
        ("a/b/d/e", "holds d in b in a"),
        ("a/c.bin", "holds c.bin in a"),
    ],
)
def test_what_is_not_listed_is_told_with_its_place(folder: Path, foreign: str, told: str) -> None:
    (folder / foreign).parent.mkdir(parents=True, exist_ok=True)
    (folder / foreign).write_text("years of work")
    assert unlisted(folder, LISTED) == told


def test_a_folder_is_no_file_and_a_file_no_folder(folder: Path) -> None:
    (folder / "config.txt").unlink()
    (folder / "config.txt").mkdir()
    assert unlisted(folder, LISTED) == ""  # nothing is lost with it
    (folder / "config.txt" / "notes.md").write_text("years of work")
    assert unlisted(folder, LISTED) == "holds notes.md in config.txt"
    assert unlisted(folder, ("config.txt/notes.md", "a/b/c.bin", "1/model.onnx/x")) == (
        "holds model.onnx, a file in 1"
    )
