"""A set of images is told from another by what the files hold, wherever they lie."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prunion.runtime.errors import DataError
from prunion.runtime.images import open_images, open_labelled, same_images

KINDS = ("folder", "csv", "jsonl", "tar")


def bitmap(red: int) -> bytes:
    """An image whose file has the size of every other's."""
    stream = io.BytesIO()
    Image.new("RGB", (6, 5), (red, 0, 0)).save(stream, "BMP")
    return stream.getvalue()


def written(root: Path, kind: str, reds: tuple[int, int]) -> Path:
    """Two images of two classes."""
    rows = [("ant", reds[0]), ("bee", reds[1])]
    if kind == "tar":
        root.mkdir()
        with tarfile.open(root / "x.tar", "w") as tar:
            for name, red in rows:
                for ending, data in (("bmp", bitmap(red)), ("cls", name.encode())):
                    about = tarfile.TarInfo(f"{name}.{ending}")
                    about.size = len(data)
                    tar.addfile(about, io.BytesIO(data))
        return root / "x.tar"
    for name, red in rows:
        (root / name).mkdir(parents=True)
        (root / name / "0.bmp").write_bytes(bitmap(red))
    if kind == "folder":
        return root
    lines = {
        "csv": ["image,label", *(f"{name}/0.bmp,{name}" for name, _ in rows)],
        "jsonl": [f'{{"image": "{name}/0.bmp", "label": "{name}"}}' for name, _ in rows],
    }
    (root / f"x.{kind}").write_text("\n".join(lines[kind]), "utf-8")
    return root / f"x.{kind}"


def digest(path: Path, labels: tuple[int, int] = (0, 1)) -> str:
    split = open_images((path,))
    assert split is not None
    return split.numbered(np.array(labels)).digest


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_one_size_are_told_apart(kind: str, tmp_path: Path) -> None:
    """Names and sizes were all that was looked at, but in Parquet."""
    found = digest(written(tmp_path / "a", kind, (10, 200)))
    swapped = written(tmp_path / "b", kind, (200, 10))
    assert same_images(found, digest(swapped)) is False
    assert same_images(found, digest(swapped, (1, 0))) is False  # in another order
    assert same_images(found, digest(written(tmp_path / "c", kind, (10, 200)))) is True
    assert same_images(found, digest(written(tmp_path / "d", kind, (10, 200)), (0, 0))) is False


def test_a_set_is_the_same_whatever_it_is_read_from(tmp_path: Path) -> None:
    assert len({digest(written(tmp_path / kind, kind, (10, 200))) for kind in KINDS}) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_that_changes_is_not_read_as_what_it_was(kind: str, tmp_path: Path) -> None:
    """What says which images a run was made of is of those that it opened."""
    path, other = (written(tmp_path / x, kind, reds) for x, reds in (("a", (1, 2)), ("b", (2, 1))))
    images, places, _ = open_labelled(path, "d", ("ant", "bee"), "exif")
    assert images.image(0).getpixel((0, 0)) == (1, 0, 0)
    file = path if kind == "tar" else tmp_path / "a" / "ant" / "0.bmp"
    kept = file.read_bytes()
    file.write_bytes((other if kind == "tar" else tmp_path / "b" / "ant" / "0.bmp").read_bytes())
    with pytest.raises(DataError, match="is no longer what it was when the images were op") as told:
        images.image(0)
    assert str(told.value).startswith(places[0])
    file.write_bytes(kept)
    assert images.image(0).getpixel((0, 0)) == (1, 0, 0)
    os.truncate(file, 1030)  # a mapped file's reader would be killed
    with pytest.raises(DataError, match=r"x\.tar cannot be read|no longer what it was"):
        images.image(1 if kind == "tar" else 0)


def test_a_part_of_a_set_is_known_by_its_own_images(tmp_path: Path) -> None:
    path = written(tmp_path / "a", "folder", (10, 200))
    images, _, _ = open_labelled(path, "d", ("ant", "bee"), "exif")
    assert images.digest == digest(path)
    first = images.subset(np.array([0]))
    other, _, _ = open_labelled(
        written(tmp_path / "b", "folder", (10, 99)), "d", ("ant",), "exif", skip_unknown=True
    )
    assert first.digest == other.digest
    assert same_images(first.digest, images.relabelled(np.array([0, 0])).digest) is False


@pytest.mark.parametrize("other", ["", "a" * 64, f"labels:{'a' * 64}"])
def test_what_another_digest_does_not_tell_is_not_known(other: str) -> None:
    own = f"images:{'a' * 64}"
    assert same_images(own, other) is None and same_images(other, own) is None
    assert same_images("", "") is None and same_images("a" * 64, "a" * 64) is None
