"""A domain opens from folders, Parquet and names, or the message names the file and the fix."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from prunion.runtime.errors import ConfigError, DataError
from prunion.trainer.config import DomainConfig
from prunion.trainer.domains import Domain, open_domain
from prunion.trainer.image_set import ImageSet
from tests.trainer.images import encoded, picture, write_folders, write_parquet

DATA = Path(os.environ.get("PRUNION_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))


def open_files(train: Path, test: Path, seed: int = 0, **options: Any) -> Domain:
    return open_domain(DomainConfig("d", train=(str(train),), test=(str(test),), **options), seed)


def pixels(images: ImageSet) -> list[bytes]:
    return [images.image(index).tobytes() for index in range(len(images))]


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


def deep_png() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(stream, "PNG")
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


BROKEN: list[tuple[Callable[[], bytes], str]] = [
    (lambda: b"", "not an image"),
    (lambda: b"<html>not found</html>", "not an image"),
    (lambda: encoded(1)[:60], ""),
    (truncated_jpeg, "truncated"),
    (bomb_png, "pixels"),
    (strip_png, "64 times"),
    (deep_png, "8 bits"),
]


@pytest.mark.parametrize(("data", "says"), BROKEN)
def test_one_unreadable_image_is_named_when_the_folder_opens(
    folders: tuple[Path, Path], data: Callable[[], bytes], says: str
) -> None:
    bad = folders[0] / "dog" / "0001.png"
    bad.write_bytes(data())
    with pytest.raises(DataError) as caught:
        open_files(*folders)
    message = str(caught.value)
    assert message.startswith(f"{bad} cannot be read (")
    assert says in message
    assert message.endswith("): remove it or replace it")
    assert "\n" not in message


def test_several_unreadable_images_are_counted(folders: tuple[Path, Path]) -> None:
    for index in range(3):
        (folders[0] / "dog" / f"000{index}.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"0000\.png cannot be read .* \(and 2 more like it\)"):
        open_files(*folders)


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
    with pytest.raises(DataError, match=r"list\.csv: give a folder of class folders or \.parquet"):
        open_files(tmp_path / "list.csv", folders[1])


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


# Parquet

NAMES = ["tench", "rose"]


def test_parquet_gives_names_from_the_metadata(tmp_path: Path) -> None:
    train = write_parquet(tmp_path / "a.parquet", [1, 0, 1, 0, 1], NAMES)
    test = write_parquet(tmp_path / "b.parquet", [1, 1], NAMES)
    domain = open_files(train, test)
    assert domain.classes == ("tench", "rose")
    assert domain.train.labels.tolist() == [1, 0, 1, 0, 1]
    assert pixels(domain.train) == [picture(index).tobytes() for index in range(5)]


def test_parquet_without_names_uses_the_labels_themselves(tmp_path: Path) -> None:
    train = write_parquet(tmp_path / "a.parquet", [7, 10, 2, 7])
    test = write_parquet(tmp_path / "b.parquet", [10, 2])  # not every class
    domain = open_files(train, test)
    assert domain.classes == ("2", "7", "10")
    assert domain.train.labels.tolist() == [1, 2, 0, 1]
    assert domain.test.labels.tolist() == [2, 0]


def test_parquet_labels_may_be_names(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", ["cat", "ant", "cat", "ant"])
    assert open_files(path, path).classes == ("ant", "cat")


def test_several_parquet_files_are_read_as_one(tmp_path: Path) -> None:
    parts = []
    for i in range(3):
        images = [encoded(3 * i + j) for j in range(3)]
        parts.append(write_parquet(tmp_path / f"{i}.parquet", [0, 1, 0], NAMES, images))
    config = DomainConfig("d", train=tuple(map(str, parts)), test=(str(parts[0]),))
    domain = open_domain(config, 0)
    assert pixels(domain.train) == [picture(index).tobytes() for index in range(9)]
    write_parquet(parts[2], [0], NAMES, [b"broken"])
    with pytest.raises(DataError, match=r"2\.parquet row 0 cannot be read"):
        open_domain(config, 0)


def test_many_rows_keep_their_order(tmp_path: Path) -> None:
    images = [encoded(index % 7) for index in range(600)]  # more than one batch of rows
    path = write_parquet(tmp_path / "a.parquet", [i % 2 for i in range(600)], NAMES, images)
    domain = open_files(path, path)
    assert pixels(domain.train) == [picture(index % 7).tobytes() for index in range(600)]


def test_parquet_refusals_name_the_row(tmp_path: Path) -> None:
    good = write_parquet(tmp_path / "good.parquet", [0, 1, 0, 1], NAMES)

    def refused(says: str, *args: Any) -> None:
        bad = write_parquet(tmp_path / "bad.parquet", *args)
        with pytest.raises(DataError, match=says) as caught:
            open_files(good, bad)
        assert "\n" not in str(caught.value)

    refused(r"bad\.parquet row 1 cannot be read .*remove it", [0, 1], NAMES, [encoded(0), b"no"])
    refused(r"bad\.parquet row 1 has no image bytes", [0, 1], NAMES, [encoded(0), None])
    refused(r"bad\.parquet row 1 has label 2, none of the 2 classes", [0, 2], NAMES)
    refused(r"bad\.parquet row 0 has label -1, none of", [-1, 1], NAMES)
    refused(r"bad\.parquet row 1 has label None: give a whole number", [0, None], NAMES)
    refused(r"bad\.parquet row 0 has label 0\.5: give a whole number", [0.5, 1.0])
    refused(r"row 0 has label 0, none of the 2 classes \(tench, rose\).*alike", [0, 1])
    refused(r"different classes \(train lacks 'lily'; test lacks 'rose'\)", [0], ["tench", "lily"])
    refused(r"different classes \(the same names in another order\)", [0], NAMES[::-1])
    refused(r"bad\.parquet holds no images", [], NAMES)


def test_a_file_that_is_not_parquet_is_named(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    good = write_parquet(tmp_path / "good.parquet", [0, 1, 0, 1], NAMES)
    bad = tmp_path / "bad.parquet"
    for data in (b"", b"PAR1 not", good.read_bytes()[:-20]):
        bad.write_bytes(data)
        with pytest.raises(DataError, match=r"bad\.parquet is not a readable Parquet file"):
            open_files(good, bad)
    pq.write_table(pa.table({"img": [b"x"], "label": [0]}), bad)
    with pytest.raises(DataError, match=r"no column 'image' \(it has img, label\): name them"):
        open_files(bad, good)


@pytest.mark.skipif(
    not (DATA / "dtd10").is_dir(), reason="needs the real domains: set PRUNION_DATA"
)
def test_real_domains_open() -> None:
    for name, classes in (("dtd10", 10), ("gtsrb", 43)):
        domain = open_files(DATA / name / "train.parquet", DATA / name / "test.parquet")
        assert len(domain.classes) == classes
        assert set(domain.test.labels) <= set(range(classes))
        assert min(domain.train.image(len(domain.train) - 1).size) > 8


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


def test_a_limit_keeps_the_classes_balanced_by_seed(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "all", {"ant": 12, "bee": 3, "cat": 12})
    domain = open_files(root, root, limit=15)
    assert np.bincount(domain.train.labels).tolist() == [6, 3, 6]
    assert len(domain.test) == 27
    assert pixels(open_files(root, root, limit=15).train) == pixels(domain.train)
    assert pixels(open_files(root, root, 1, limit=15).train) != pixels(domain.train)
    with pytest.raises(ConfigError, match=r"\[domains.d\] limit is 2, fewer than its 3 classes"):
        open_files(root, root, limit=2)


# By name


def write_mnist(root: Path, count: int) -> None:
    """MNIST's own files, with `count` small digits."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        grey = bytes(28 * 28 * count)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(
            struct.pack(">IIII", 2051, count, 28, 28) + grey
        )
        labels = bytes(index % 10 for index in range(count))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + labels)


def named(dataset: str, root: Path, **options: Any) -> DomainConfig:
    return DomainConfig("d", source="torchvision", dataset=dataset, root=str(root), **options)


def test_torchvision_opens_by_name_with_a_train_flag(tmp_path: Path) -> None:
    write_mnist(tmp_path, 30)
    domain = open_domain(named("MNIST", tmp_path), 0)
    assert domain.classes[:2] == ("0 - zero", "1 - one")
    assert len(domain.train) == len(domain.test) == 30
    assert (domain.train.image(3).mode, domain.train.image(3).size) == ("RGB", (28, 28))


def test_torchvision_opens_by_name_with_a_split(tmp_path: Path) -> None:
    base = tmp_path / "gtsrb"
    for label in range(2):
        folder = base / "GTSRB" / "Training" / f"{label:05}"
        folder.mkdir(parents=True)
        for index in range(4):
            picture(index).save(folder / f"{index}.ppm")
    images = base / "GTSRB" / "Final_Test" / "Images"
    images.mkdir(parents=True)
    picture(9).save(images / "00000.ppm")
    (base / "GT-final_test.csv").write_text("Filename;ClassId\n00000.ppm;1\n")
    domain = open_domain(named("GTSRB", tmp_path), 0)
    assert domain.train.labels.tolist() == [0] * 4 + [1] * 4
    assert domain.test.labels.tolist() == [1]
    with pytest.raises(ConfigError, match=r"\[domains.d\] cannot open GTSRB: .*split"):
        open_domain(named("GTSRB", tmp_path, test_split="validation"), 0)


def test_torchvision_refusals_name_the_fix(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'CIFAR11' is not in torchvision.*mean 'CIFAR10'"):
        open_domain(named("CIFAR11", tmp_path), 0)
    with pytest.raises(ConfigError, match="'FakeData' has no training and test split: write"):
        open_domain(named("FakeData", tmp_path), 0)
    with pytest.raises(DataError, match=r"CIFAR10 is not in .*\[domains.d\] root, or set download"):
        open_domain(named("CIFAR10", tmp_path), 0)


def test_huggingface_opens_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="prunion[huggingface] is optional")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    hub = tmp_path / "hub"
    hub.mkdir()
    write_parquet(hub / "train.parquet", [1, 0, 1, 0], NAMES)
    write_parquet(hub / "test.parquet", [1], NAMES)
    config = DomainConfig("d", source="huggingface", dataset=str(hub))
    domain = open_domain(config, 0)
    assert domain.classes == ("tench", "rose")
    assert domain.train.labels.tolist() == [1, 0, 1, 0]
    assert pixels(domain.train) == [picture(index).tobytes() for index in range(4)]
    missing = DomainConfig("d", source="huggingface", dataset=str(hub), test_split="validation")
    with pytest.raises(DataError, match=r"\[domains.d\] cannot load .*split validation"):
        open_domain(missing, 0)
