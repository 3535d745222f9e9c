"""Images that are there twice, or in training and test, are told of."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

from prunion.trainer.config import DomainConfig
from prunion.trainer.data import open_domain
from tests.trainer.images import encoded, open_files, write_folders, write_parquet

CROSSED = "2 of 4 test images are training images too: the accuracy says less of new ones"


def remarks(train: Path, test: Path, **options: object) -> list[str]:
    found: list[str] = open_files(train, test, **options).found["remarks"]
    return found


def shard(path: Path) -> Path:
    """Four samples of two classes."""
    with tarfile.open(path, "w") as tar:
        for number in range(4):
            for ending, data in (("png", encoded(number)), ("cls", b"%d" % (number % 2))):
                about = tarfile.TarInfo(f"{number}.{ending}")
                about.size = len(data)
                tar.addfile(about, io.BytesIO(data))
    return path


def test_a_set_that_is_both_is_told(tmp_path: Path) -> None:
    both = write_folders(tmp_path / "x", {"ant": 2, "bee": 2})
    told = "4 of 4 test images are training images too: the accuracy says less of new ones"
    assert remarks(both, both) == [told]


def test_links_are_the_same_image(tmp_path: Path) -> None:
    train = write_folders(tmp_path / "train", {"ant": 3, "bee": 3})
    test = write_folders(tmp_path / "test", {"ant": 1, "bee": 1})
    os.symlink(train / "ant" / "0001.png", test / "ant" / "more.png")
    os.link(train / "bee" / "0002.png", test / "bee" / "more.png")
    assert remarks(train, test) == [CROSSED]
    os.symlink(train / "ant" / "0000.png", train / "bee" / "wrong.png")
    assert "1 train images are there once more, 1 of them with another label" in remarks(
        train, test
    )


def test_rows_of_a_table_that_contradict_each_other(tmp_path: Path) -> None:
    write_folders(tmp_path, {"ant": 3, "bee": 3})
    lines = [f"{kind}/000{i}.png,{kind}" for kind in ("ant", "bee") for i in range(3)]
    test = tmp_path / "test.csv"
    test.write_text("image,label\nant/0000.png,ant\nbee/0000.png,bee\n", "utf-8")
    train = tmp_path / "train.csv"
    rows = [*lines[1:3], *lines[4:], "./ant/0001.png,bee", "bee/0001.png,bee"]
    train.write_text("\n".join(["image,label", *rows]), "utf-8")
    told = "2 train images are there once more, 1 of them with another label"
    assert remarks(train, test) == [told]


def test_the_same_bytes_in_parquet(tmp_path: Path) -> None:
    images = [encoded(i) for i in range(4)]
    train = write_parquet(tmp_path / "a.parquet", [0, 1, 0, 1], ["ant", "bee"], images)
    images[2:] = [encoded(7), encoded(8)]
    test = write_parquet(tmp_path / "b.parquet", [0, 1, 0, 1], ["ant", "bee"], images)
    assert remarks(train, test) == [CROSSED]
    # What is held out is compared with what stays.
    write_parquet(train, [0, 1] * 3, ["ant", "bee"], [encoded(i) for i in (0, 1)] * 3)
    config = DomainConfig("d", train=(str(train),), holdout=0.3)
    told, crossed = open_domain(config, 0).found["remarks"]
    assert told == "2 train images are there once more"
    assert crossed.startswith("2 of 2 test images are training images too")


def test_the_same_shard(tmp_path: Path) -> None:
    train = shard(tmp_path / "train.tar")
    assert remarks(train, train)[0].startswith("4 of 4 test images are training images too")
    assert remarks(train, shard(tmp_path / "test.tar")) == []  # copies are not compared


def test_sets_without_repeats_have_no_remark(tmp_path: Path) -> None:
    train = write_folders(tmp_path / "train", {"ant": 3, "bee": 3})
    test = write_folders(tmp_path / "test", {"ant": 1, "bee": 1})  # other files, if like ones
    assert remarks(train, test) == []
