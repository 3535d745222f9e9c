"""Tar shards as webdataset writes them: samples in, and whatever else a tar may hold refused."""

from __future__ import annotations

import io
import json
import os
import random
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prunion.runtime.errors import DataError
from prunion.runtime.images import image_files, open_images, open_labelled
from prunion.runtime.images.sources.tars import open_tars


def picture(red: int, kind: str = "png") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (6, 5), (red, 0, 0)).save(stream, kind)
    return stream.getvalue()


def shard(path: Path, *files: tuple[str, bytes | str]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files:
            content = data.encode() if isinstance(data, str) else data
            about = tarfile.TarInfo(name)
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))
    return path


def write_headers(path: Path, headers: list[tuple[bytes, int]]) -> None:
    """A tar of headers of these kinds and sizes, one behind the other, before one file."""
    with tarfile.open(path, "w") as tar:
        for number, (kind, size) in enumerate(headers):
            about = tarfile.TarInfo("x")
            text = f" k{number}=" + "y" * size + "\n"
            size = len(text) + len(str(len(text) + 6))  # a pax record begins with its own length
            text = f"{size}{text}"
            about.type, about.size = kind, len(text)
            tar.addfile(about, io.BytesIO(text.encode()))
        tar.addfile(tarfile.TarInfo("0.png"))


def reds(split: object) -> list[int]:
    return [split.read(i).getpixel((0, 0))[0] for i in range(len(split.labels))]  # type: ignore[attr-defined]


def test_samples_of_several_shards_are_one_set(tmp_path: Path) -> None:
    long = "folder/" + "x" * 200  # takes a header of its own
    shard(
        tmp_path / "train-000.tar",
        ("a/0.cls", "7"), ("a/0.png", picture(1)), ("./a/1.JPG", picture(2, "jpeg")),
        ("./a/1.cls", " 3\n"), ("a/._1.jpg", b"junk"), ("README", "hello"),
    )  # fmt: skip
    shard(tmp_path / "train-001.tar", (f"{long}.png", picture(3)), (f"{long}.cls", "7"))
    split = open_images(image_files([tmp_path / "train-*.tar"]))
    assert split is not None
    assert (list(split.labels), split.names) == ([7, 3, 7], None)
    assert reds(split) == [1, split.read(1).getpixel((0, 0))[0], 3]
    assert split.place(0) == f"{tmp_path}/train-000.tar a/0.png"
    assert split.place(2).startswith(f"{tmp_path}/train-001.tar folder/x")
    assert split.skipped == {"hidden (name begins with a dot)": 1, "without an ending": 1}
    numbers = np.zeros(3, np.int64)
    digest = split.numbered(numbers).digest
    assert digest != split.numbered(numbers + 1).digest
    folder = open_images(image_files([tmp_path]))  # a folder of shards
    assert folder is not None and folder.numbered(numbers).digest == digest
    images, _, _ = open_labelled(tmp_path, "d", ("3", "7"), "exif")
    assert images.labels.tolist() == [1, 0, 1]


def test_labels_are_texts_or_keys_of_json(tmp_path: Path) -> None:
    about = json.dumps({"label": "cat", "kind": 4})
    path = shard(
        tmp_path / "x.tar",
        ("0.png", picture(1)), ("0.json", about), ("0.txt", "dog"), ("0.seg.png", picture(9)),
        ("1.png", picture(2)), ("1.json", about), ("1.txt", "007"), ("1.seg.png", picture(8)),
    )  # fmt: skip
    for column, labels in {"label": ["cat"] * 2, "kind": [4] * 2, "txt": ["dog", "007"]}.items():
        assert list(open_tars([path], ("png", column)).labels) == labels
    assert reds(open_tars([path], ("seg.png", "label"))) == [9, 8]
    with pytest.raises(DataError, match=r"x.tar 0 has 2 images \(png, json, txt, seg.png\)"):
        open_tars([path])
    with pytest.raises(DataError, match=r"has no .jpg \(but png"):
        open_tars([path], ("jpg", "label"))
    with pytest.raises(DataError, match=r"0.json has no 'other' \(but label, kind\)"):
        open_tars([path], ("png", "other"))


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ([("0.cls", "1")], "has 0 images"),
        ([("0.png", picture(1))], "has no .cls and no .json"),
        ([("0.png", picture(1)), ("0.cls", b"\xff\xfe")], "no UTF-8 text"),
        ([("0.png", picture(1)), ("0.cls", "x" * 2000)], "over 1,024 bytes"),
        ([("0.png", picture(1)), ("0.json", "[" * 9999)], "no JSON"),
        ([("0.png", picture(1)), ("0.json", "[1]")], "has no 'label'"),
        ([("0.png", picture(1)), ("0.png", picture(1)), ("0.cls", "1")], "twice in one sample"),
        (
            [(f"{n}.{x}", data) for n in "010" for x, data in (("png", picture(1)), ("cls", "1"))],
            "sample '0' at two places",
        ),
        (
            [
                ("0.png", picture(1)),
                ("0.cls", "1"),
                ("1.png", picture(1)),
                ("1.cls", "1"),
                ("0.cls", "2"),
            ],
            "sample '0' at two places",
        ),
        ([("0.png", b"no image"), ("0.cls", "1")], "0.png cannot be read"),
        ([], "holds no images"),
    ],
)
def test_what_is_no_sample_is_named(
    tmp_path: Path, files: list[tuple[str, bytes | str]], told: str
) -> None:
    with pytest.raises(DataError, match=told):
        open_tars([shard(tmp_path / "x.tar", *files)])


def test_a_shard_ends_where_its_file_ends(tmp_path: Path) -> None:
    one, two = (
        shard(tmp_path / f"{n}.tar", (f"{n}.png", picture(n)), (f"{n}.cls", "1")).read_bytes()
        for n in (1, 2)
    )
    path = tmp_path / "both.tar"
    for padding in (0, 512, (1 << 20) + 7):
        path.write_bytes(one + bytes(padding))
        assert len(open_tars([path]).labels) == 1
        for more in (two, b"x"):
            path.write_bytes(one + bytes(padding) + more)
            with pytest.raises(DataError, match=r"both.tar holds more behind its end.*as a list"):
                open_tars([path])
    path.write_bytes(one)
    os.truncate(path, 1 << 38)  # a hole, which takes no time
    assert len(open_tars([path]).labels) == 1
    path.write_bytes(one.rstrip(b"\0") + bytes(512 - len(one.rstrip(b"\0")) % 512) + bytes(512))
    assert len(open_tars([path]).labels) == 1  # one block of zeros, as some write it


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE]
)
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        about = tarfile.TarInfo("0.png")
        about.type, about.linkname = kind, "/etc/passwd"
        tar.addfile(about)
    with pytest.raises(DataError, match=r"holds '0.png', a link, a device"):
        open_tars([path])


def test_a_compressed_or_missing_shard_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("0.png"))
    with pytest.raises(DataError, match="without compression"):
        open_tars([path])
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"no plain tar file, .*empty"):
        open_tars([path])
    with pytest.raises(DataError, match="does not exist"):
        open_tars([tmp_path / "y.tar"])


def test_a_shard_cut_short_or_damaged_is_refused_wherever(tmp_path: Path) -> None:
    pairs = [((f"{i}.png", picture(i)), (f"{i}.cls", "1")) for i in range(3)]
    whole = shard(tmp_path / "x.tar", *(file for pair in pairs for file in pair)).read_bytes()
    end = 6 * 1024  # of the last file: a header and a block each
    assert not whole[end:].strip(b"\0") and whole[end - 512 : end].strip(b"\0")
    cut = tmp_path / "cut.tar"
    for size in (*range(0, end, 512), *range(100, end, 700)):
        cut.write_bytes(whole[:size])
        with pytest.raises(DataError):
            open_tars([cut])
    for place in range(1024, end, 1024):  # a header in the middle: tarfile would end there
        cut.write_bytes(whole[:place] + b"\xff" * 100 + whole[place + 100 :])
        with pytest.raises(DataError):
            open_tars([cut])


def test_headers_do_not_fill_memory(tmp_path: Path) -> None:
    about = tarfile.TarInfo("0.png")
    path = tmp_path / "x.tar"
    headers = {"comment": "x" * (2 << 20)}
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers=headers):
        pass
    with pytest.raises(DataError, match="header of over 1 MiB"):
        open_tars([path])
    # A size beyond the file, in tar's binary form of large numbers.
    about.size = 1 << 50
    path.write_bytes(about.tobuf(tarfile.GNU_FORMAT) + b"\0" * 1024)
    with pytest.raises(DataError, match=r"ends within '0.png'"):
        open_tars([path])


def test_many_small_headers_do_not_fill_memory_either(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    for kind in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):
        write_headers(path, [(kind, 400 << 10)] * 3)
        with pytest.raises(DataError, match="header of over 1 MiB"):
            open_tars([path])
    write_headers(path, [(tarfile.XGLTYPE, 40 << 10)] * 2)  # kept to the archive's end
    with pytest.raises(DataError, match="notes on all files of over 64 KiB"):
        open_tars([path])


def test_any_bytes_are_images_or_an_error(tmp_path: Path) -> None:
    files = [("0.png", picture(1)), ("0.cls", "1"), ("1.png", picture(2)), ("1.cls", "2")]
    whole = shard(tmp_path / "x.tar", *files).read_bytes()
    dice, path = random.Random(0), tmp_path / "y.tar"
    for _ in range(200):
        broken = bytearray(whole)
        for _ in range(dice.randint(1, 8)):
            broken[dice.randrange(4096)] = dice.randrange(256)
        path.write_bytes(broken)
        try:
            split = open_tars([path])
        except DataError as exc:
            assert "\n" not in str(exc)
        else:
            assert len(split.labels) <= 2


@pytest.mark.parametrize("ending", ["cls", "json"])
def test_numbers_that_may_be_places_are_not_taken_for_names(tmp_path: Path, ending: str) -> None:
    """The library writes places; of class folders 0, 1, 10, … the third would be another class."""
    told = {"cls": "{}", "json": '{{"label": {}}}'}[ending]
    files = [(f"{i}.png", picture(i)) for i in range(12)]
    labels = [(f"{i}.{ending}", told.format(i)) for i in range(12)]
    path = shard(tmp_path / "x.tar", *(x for pair in zip(files, labels, strict=True) for x in pair))
    plain, listed = tuple(map(str, range(12))), tuple(sorted(map(str, range(12))))
    with pytest.raises(DataError, match=r"x.tar 2.png has label 2, and nothing says whether"):
        open_labelled(path, "d", listed, "exif")
    found, *_ = open_labelled(path, "d", plain, "exif")  # by both readings the same
    assert found.labels.tolist() == list(range(12))
