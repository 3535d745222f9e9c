"""A domain opens from folders, Parquet and names, or the message names the file and the fix."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prunion.runtime.errors import ConfigError, DataError
from prunion.trainer.config import DomainConfig
from prunion.trainer.data import Domain, open_domain
from tests.support.images import encoded, open_files, picture, pixels, write_folders

# Class folders


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    train = write_folders(tmp_path / "train", {"dog": 3, "ant": 2, "Cat": 4})
    return train, write_folders(tmp_path / "test", {"Cat": 1, "ant": 1, "dog": 1})


def test_class_folders_open_in_the_order_of_their_names(folders: tuple[Path, Path]) -> None:
    domain = open_files(*folders, mirror=True, crop=False)
    assert domain.classes == ("Cat", "ant", "dog")
    assert domain.train.labels.tolist() == [0] * 4 + [1] * 2 + [2] * 3
    assert domain.train.labels.dtype == np.int64
    assert (domain.mirror, domain.crop) == (True, False)
    assert pixels(domain.train)[0] == picture(5).tobytes()  # written dog, ant, Cat


def test_images_lie_deeper_and_other_files_beside_them(folders: tuple[Path, Path]) -> None:
    deeper = folders[0] / "ant" / "2024"
    deeper.mkdir()
    picture(50).save(deeper / "new.JPG", "JPEG")
    for name in (".DS_Store", "Thumbs.db", "notes.txt", ".hidden.png"):
        (folders[0] / "ant" / name).write_bytes(b"x")
    (folders[0] / ".cache").mkdir()
    assert np.bincount(open_files(*folders).train.labels).tolist() == [4, 3, 3]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "CMYK"])
def test_every_mode_becomes_rgb(folders: tuple[Path, Path], mode: str) -> None:
    name = "0000.tif" if mode == "CMYK" else "0000.gif" if mode == "P" else "0000.png"
    (folders[0] / "Cat" / "0000.png").unlink()
    picture(1).convert(mode).save(folders[0] / "Cat" / name)
    assert open_files(*folders).train.image(0).mode == "RGB"


def truncated_jpeg() -> bytes:
    stream = io.BytesIO()
    picture(1, 200, 200).save(stream, "JPEG")
    return stream.getvalue()[: len(stream.getvalue()) // 2]


def deep_tiff() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(stream, "TIFF")
    return stream.getvalue()


def bomb_png() -> bytes:
    """A header that promises 20,000 × 20,000 pixels."""
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IEND", b"")


def strip_png() -> bytes:
    stream = io.BytesIO()
    picture(1, 2000, 2).save(stream, "PNG")
    return stream.getvalue()


REPLACE = "remove it or replace it"
BROKEN: list[tuple[Callable[[], bytes], str, str]] = [
    (lambda: b"", "not an image", REPLACE),
    (lambda: b"<html>not found</html>", "not an image", REPLACE),
    (lambda: encoded(1)[:60], "", REPLACE),
    (truncated_jpeg, "truncated", REPLACE),
    (bomb_png, "pixels", "scale it down"),
    (strip_png, "64 times", "cut it into pieces"),
    (deep_tiff, "8 bits", "convert it to 8 or 16 bits a channel"),
]


@pytest.mark.parametrize(("data", "says", "fix"), BROKEN)
def test_one_unreadable_image_is_named_when_the_folder_opens(
    folders: tuple[Path, Path], data: Callable[[], bytes], says: str, fix: str
) -> None:
    bad = folders[0] / "dog" / "0001.png"
    bad.write_bytes(data())
    with pytest.raises(DataError) as caught:
        open_files(*folders)
    message = str(caught.value)
    assert message.startswith(f"{bad} cannot be read (")
    assert says in message
    assert message.endswith(f"): {fix}")
    assert "\n" not in message


def test_several_unreadable_images_are_counted(folders: tuple[Path, Path]) -> None:
    for index in range(3):
        (folders[0] / "dog" / f"000{index}.png").write_bytes(b"x")
    with pytest.raises(
        DataError, match=r"0000\.png cannot be read .*; 2 more images .*such as .*\.png"
    ):
        open_files(*folders)


def test_reading_in_threads_leaves_the_users_warnings_alone(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "many", {"cat": 60, "dog": 60})
    before = list(warnings.filters)
    for _ in range(20):
        open_files(root, root)
        assert warnings.filters == before


def test_a_link_to_nowhere_is_named(folders: tuple[Path, Path]) -> None:
    (folders[0] / "dog" / "gone.png").symlink_to(folders[0] / "nowhere.png")
    with pytest.raises(DataError, match=r"gone\.png cannot be read .*remove it or replace it"):
        open_files(*folders)


def test_an_empty_class_folder_is_named(folders: tuple[Path, Path]) -> None:
    (folders[0] / "bee").mkdir()
    with pytest.raises(DataError, match=r"bee holds no images .* or remove the folder"):
        open_files(*folders)


def test_a_folder_without_classes_is_named(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    picture(0).save(tmp_path / "alone.png")
    with pytest.raises(DataError, match="Cat has no class folders: put its images in one folder"):
        open_files(folders[0] / "Cat", folders[1])


def test_a_path_that_is_not_there_is_named(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    with pytest.raises(DataError, match=r"\[domains.d\] test is .*none, which does not exist"):
        open_files(folders[0], tmp_path / "none")
    with pytest.raises(DataError, match=r"none\.parquet does not exist: correct the path"):
        open_files(tmp_path / "none.parquet", folders[1])
    (tmp_path / "list.csv").touch()
    with pytest.raises(DataError, match=r"list\.csv has no first line: name the columns image and"):
        open_files(tmp_path / "list.csv", folders[1])
    (tmp_path / "list.xls").touch()
    with pytest.raises(DataError, match=r"list\.xls: give a folder of class folders or \.parquet"):
        open_files(tmp_path / "list.xls", folders[1])


def test_one_class_is_too_few(tmp_path: Path) -> None:
    only = write_folders(tmp_path / "only", {"cat": 8})
    with pytest.raises(DataError, match=r"\[domains.d\] has one class, 'cat': give at least two"):
        open_files(only, only)


def test_too_few_images_are_refused(tmp_path: Path) -> None:
    few = write_folders(tmp_path / "few", {"cat": 1, "dog": 2})
    with pytest.raises(DataError, match="has 3 training images: give 4 or more"):
        open_files(few, few)


def test_other_classes_in_the_test_set_are_named(
    tmp_path: Path, folders: tuple[Path, Path]
) -> None:
    other = write_folders(tmp_path / "other", {"Cat": 1, "ant": 1, "wolf": 1})
    with pytest.raises(
        DataError, match=r"train lacks 'wolf'; test lacks 'dog'.*make them the same"
    ):
        open_files(folders[0], other)


# Parts of a set


def test_holdout_takes_a_share_of_every_class_by_seed(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "all", {"ant": 10, "bee": 20, "cat": 1})

    def opened(seed: int) -> Domain:
        return open_domain(DomainConfig("d", train=(str(root),), holdout=0.2), seed)

    domain = opened(0)
    assert np.bincount(domain.test.labels).tolist() == [2, 4]
    assert np.bincount(domain.train.labels).tolist() == [8, 16, 1]
    assert not set(pixels(domain.train)) & set(pixels(domain.test))
    assert pixels(opened(0).test) == pixels(domain.test)
    assert pixels(opened(1).test) != pixels(domain.test)


def test_the_largest_holdout_leaves_every_class_an_image_to_learn(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "all", {"ant": 2, "bee": 3, "cat": 5, "dog": 2})
    domain = open_domain(DomainConfig("d", train=(str(root),), holdout=0.9), 0)
    assert np.bincount(domain.train.labels).tolist() == [1, 1, 1, 1]
    assert np.bincount(domain.test.labels).tolist() == [1, 2, 4, 1]


def test_a_limit_keeps_the_classes_balanced_by_seed(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "all", {"ant": 12, "bee": 3, "cat": 12})
    domain = open_files(root, root, limit=15)
    assert np.bincount(domain.train.labels).tolist() == [6, 3, 6]
    assert len(domain.test) == 27
    assert pixels(open_files(root, root, limit=15).train) == pixels(domain.train)
    assert pixels(open_files(root, root, 1, limit=15).train) != pixels(domain.train)
    with pytest.raises(ConfigError, match=r"\[domains.d\] limit is 2, fewer than its 3 classes"):
        open_files(root, root, limit=2)
    two = write_folders(tmp_path / "two", {"ant": 4, "bee": 4})
    with pytest.raises(ConfigError, match=r"\[domains.d\] limit is 3, fewer than 4 images"):
        open_files(two, two, limit=3)
    assert len(open_files(two, two, limit=4).train) == 4
