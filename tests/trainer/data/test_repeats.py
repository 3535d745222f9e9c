"""Images that are there twice, or in training and test, are told of."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from pathlib import Path

import pytest

from prunion.runtime.errors import DataError
from prunion.trainer.config import DomainConfig
from prunion.trainer.data import open_domain, open_domains
from tests.support.images import encoded, open_files, write_folders, write_parquet

CROSSED = "2 of 4 test images are training images too: the accuracy says less of new ones"


def remarks(train: Path, test: Path, **options: object) -> list[str]:
    found: list[str] = open_files(train, test, **options).found["remarks"]
    return found


def shard(path: Path, first: int = 0) -> Path:
    """Four samples of two classes."""
    with tarfile.open(path, "w") as tar:
        for number in range(first, first + 4):
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
    test = write_folders(tmp_path / "test", {"ant": 1, "bee": 1}, number=10)
    os.symlink(train / "ant" / "0001.png", test / "ant" / "more.png")
    os.link(train / "bee" / "0002.png", test / "bee" / "more.png")
    assert remarks(train, test) == [CROSSED]
    os.symlink(train / "ant" / "0000.png", train / "bee" / "wrong.png")
    told = "1 train images are there once more, 1 of them with another label, such as "
    assert f"{told}{train}/ant/0000.png and {train}/bee/wrong.png" in remarks(train, test)


def test_validation_images_that_are_test_images_are_told(tmp_path: Path) -> None:
    train = write_folders(tmp_path / "train", {"ant": 3, "bee": 3})
    test = write_folders(tmp_path / "test", {"ant": 2, "bee": 2}, number=10)
    found = remarks(train, test, validation=(str(test),))
    told = "what is chosen by the ones is chosen by the others"
    assert found == [f"4 of 4 validation images are test images too: {told}"]
    # The same picture under another name, in another class.
    shutil.copy(train / "bee" / "0000.png", test / "ant" / "more.png")
    told = "1 of 5 test images are training images too, 1 of them with another label"
    assert remarks(train, test) == [f"{told}: the accuracy says less of new ones"]


@pytest.mark.parametrize("name", ["nan", "N/A", "None"])
def test_a_class_called_as_what_has_no_value_is_told(tmp_path: Path, name: str) -> None:
    train = write_folders(tmp_path / "train", {"ant": 3, "bee": 3})
    (train / "bee").rename(train / name.replace("/", "-"))
    table = tmp_path / "train.csv"
    rows = [
        f"{x.relative_to(tmp_path)},{name if i > 2 else 'ant'}"
        for i, x in enumerate(sorted(train.rglob("*.png"), key=lambda x: x.parent.name != "ant"))
    ]
    table.write_text("\n".join(["image,label", *rows]), "utf-8")
    found = remarks(table, table)
    assert f"a class is called {name!r}, as tables write what has no value" in str(found)


def test_test_images_that_another_domain_learns_from_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The trunk is one for all domains."""
    first = write_folders(tmp_path / "first", {"ant": 4, "bee": 4})
    second = write_folders(tmp_path / "second", {"cat": 4, "dog": 4}, number=20)
    tests = [
        write_folders(tmp_path / "test1", {"ant": 2, "bee": 2}, number=40),
        write_folders(tmp_path / "test2", {"cat": 2, "dog": 2}, number=60),
    ]
    shutil.copy(first / "ant" / "0000.png", tests[1] / "cat" / "of-first.png")
    configs = [
        DomainConfig(name, train=(str(train),), test=(str(test),))
        for name, train, test in zip(("one", "two"), (first, second), tests, strict=True)
    ]
    one, two = open_domains(configs, 0)
    told = (
        "1 of 5 test images are training images of other domains, such as one: a trunk that "
        "learns along has seen them"
    )
    assert (one.found["remarks"], two.found["remarks"]) == ([], [told])
    assert f"domain two: {told}" in caplog.text


def test_rows_of_a_table_that_contradict_each_other(tmp_path: Path) -> None:
    write_folders(tmp_path, {"ant": 3, "bee": 3})
    lines = [f"{kind}/000{i}.png,{kind}" for kind in ("ant", "bee") for i in range(3)]
    test = tmp_path / "test.csv"
    test.write_text("image,label\nant/0000.png,ant\nbee/0000.png,bee\n", "utf-8")
    train = tmp_path / "train.csv"
    rows = [*lines[1:3], *lines[4:], "./ant/0001.png,bee", "bee/0001.png,bee"]
    train.write_text("\n".join(["image,label", *rows]), "utf-8")
    told = "2 train images are there once more, 1 of them with another label, such as "
    pair = f"{train} line 2 (ant/0001.png) and {train} line 6 (./ant/0001.png)"
    assert remarks(train, test) == [f"{told}{pair}"]


def test_the_same_bytes_in_parquet(tmp_path: Path) -> None:
    images = [encoded(i) for i in range(4)]
    train = write_parquet(tmp_path / "a.parquet", [0, 1, 0, 1], ["ant", "bee"], images)
    images[2:] = [encoded(7), encoded(8)]
    test = write_parquet(tmp_path / "b.parquet", [0, 1, 0, 1], ["ant", "bee"], images)
    assert remarks(train, test) == [CROSSED]


def test_no_copy_is_held_out_while_another_stays(tmp_path: Path) -> None:
    train = write_folders(tmp_path / "train", {"ant": 8, "bee": 8})
    for path in list(train.rglob("*.png")):
        shutil.copy(path, path.with_name(f"copy-{path.name}"))
    for seed in range(5):
        domain = open_domain(DomainConfig("d", train=(str(train),), holdout=0.5), seed)
        assert len(domain.test) and not domain.test.also_in(domain.train)[0]
        assert not [x for x in domain.found["remarks"] if "training images too" in x]


def test_what_is_there_only_as_copies_cannot_be_held_out(tmp_path: Path) -> None:
    images = [encoded(i) for i in (0, 1)] * 3
    train = write_parquet(tmp_path / "a.parquet", [0, 1] * 3, ["ant", "bee"], images)
    with pytest.raises(DataError, match=r"none has a second; .*copies of one are one"):
        open_domain(DomainConfig("d", train=(str(train),), holdout=0.3), 0)


def test_the_same_bytes_in_shards(tmp_path: Path) -> None:
    train = shard(tmp_path / "train.tar")
    for test in (train, shard(tmp_path / "test.tar")):
        assert remarks(train, test)[0].startswith("4 of 4 test images are training images too")
    assert remarks(train, shard(tmp_path / "other.tar", 4)) == []


def test_copies_in_folders(tmp_path: Path) -> None:
    train = write_folders(tmp_path / "train", {"ant": 3, "bee": 3})
    test = write_folders(tmp_path / "test", {"ant": 1, "bee": 1}, number=10)
    shutil.copy(train / "ant" / "0001.png", test / "ant" / "more.png")
    shutil.copy(train / "bee" / "0002.png", test / "bee" / "more.png")
    assert remarks(train, test) == [CROSSED]


def test_sets_without_repeats_have_no_remark(tmp_path: Path) -> None:
    train = write_folders(tmp_path / "train", {"ant": 3, "bee": 3})
    test = write_folders(tmp_path / "test", {"ant": 1, "bee": 1}, number=10)
    assert remarks(train, test) == []


def test_copies_take_no_image_from_the_test_set(tmp_path: Path) -> None:
    """A rare class that is listed five times over has its share of test images all the same."""
    write_folders(tmp_path, {"ant": 20, "bee": 20})
    rows = [f"{kind}/{i:04}.png,{kind}" for kind in ("ant", "bee") for i in range(20)]
    train = tmp_path / "train.csv"
    train.write_text("\n".join(["image,label", *rows, *rows[20:] * 4]), "utf-8")
    domain = open_domain(DomainConfig("d", train=(str(train),), holdout=0.25), 0)
    assert [int((domain.test.labels == label).sum()) for label in (0, 1)] == [5, 5 * 5]
    assert not domain.test.also_in(domain.train)[0]
