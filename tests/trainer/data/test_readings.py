"""Whole numbers that may be names of classes as well as their places are not guessed at."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from prunion.runtime.errors import DataError
from prunion.runtime.images import open_labelled
from prunion.trainer.data import Domain
from tests.support.images import encoded, open_files, write_folders, write_parquet

NUMBERED = sorted(map(str, range(12)))  # as class folders are listed: 0, 1, 10, …
TOLD = "row 2 has label 2, and nothing says whether that is class .2. or the class at place 2, .10."


def parquet(path: Path, labels: Sequence[int], names: list[str] | None) -> Path:
    return write_parquet(path, labels, names, [encoded(i) for i in range(len(labels))])


def test_a_file_that_lost_its_names_is_refused(tmp_path: Path) -> None:
    """By their names 10 of 12 images would be of other classes than by their places."""
    train = parquet(tmp_path / "a.parquet", range(12), NUMBERED)
    test = parquet(tmp_path / "b.parquet", range(12), None)
    with pytest.raises(DataError, match=TOLD):
        open_files(train, test)
    for skip in (False, True):
        with pytest.raises(DataError, match=TOLD):
            open_labelled(test, "d", tuple(NUMBERED), "exif", skip_unknown=skip)


def test_numbers_are_read_where_there_is_one_reading(tmp_path: Path) -> None:
    plain = [str(x) for x in range(12)]
    labels = list(range(12))
    stripped = parquet(tmp_path / "b.parquet", labels, None)
    named = parquet(tmp_path / "a.parquet", labels, plain)
    for train in (named, stripped):  # a name is its place, or there are no names
        assert open_files(train, stripped).test.labels.tolist() == labels
    from_one = parquet(tmp_path / "c.parquet", range(1, 13), None)
    domain: Domain = open_files(from_one, from_one)
    assert domain.classes[0] == "1" and domain.test.labels.tolist() == labels
    found, _, _ = open_labelled(from_one, "d", domain.classes, "exif")
    assert found.labels.tolist() == labels


def test_numbers_of_a_table_of_text_are_names(tmp_path: Path) -> None:
    """As in GTSRB: class folders, and a table that says of which each test image is."""
    train = write_folders(tmp_path, dict.fromkeys(NUMBERED, 1))
    test = tmp_path / "test.csv"
    rows = "".join(f"{name}/0000.png,{name}\n" for name in NUMBERED)
    test.write_text(f"image,label\n{rows}", "utf-8")
    domain = open_files(train, test)
    assert [domain.classes[x] for x in domain.test.labels] == NUMBERED


def test_a_table_may_have_classes_that_are_left_out(tmp_path: Path) -> None:
    train = write_folders(tmp_path, {"a": 3, "b": 3})
    test = tmp_path / "test.csv"
    test.write_text("image,label\na/0000.png,a\nb/0000.png,b\nb/0001.png,c\n", "utf-8")
    with pytest.raises(DataError, match="label 'c', none of the 2 classes"):
        open_files(train, test)
    domain = open_files(train, test, drop_untrained=True)
    assert domain.test.labels.tolist() == [0, 1]
    assert "1 test images of such classes" in domain.found["remarks"][0]


def test_numbers_beside_names_are_names(tmp_path: Path) -> None:
    """What names the classes has one reading, also where another number would be a place."""
    write_folders(tmp_path, {"a": 3, "b": 3})
    rows = [("a/0000.png", 1), ("a/0001.png", 2), ("b/0000.png", "a"), ("b/0001.png", "a")]
    table = tmp_path / "train.jsonl"
    lines = [json.dumps({"image": image, "label": label}) for image, label in rows]
    table.write_text("\n".join(lines), "utf-8")
    test = tmp_path / "test.jsonl"
    test.write_text("\n".join(lines[:2]), "utf-8")
    domain = open_files(table, test)
    assert domain.classes == ("1", "2", "a")
    assert (domain.train.labels.tolist(), domain.test.labels.tolist()) == ([0, 1, 2, 2], [0, 1])


def test_a_table_of_text_trains_beside_folders_of_its_names(tmp_path: Path) -> None:
    """Numbers have the order of numbers, folders that of words, and nobody could change either."""
    test = write_folders(tmp_path, dict.fromkeys(NUMBERED, 1))
    train = tmp_path / "train.csv"
    rows = "".join(f"{name}/0000.png,{name}\n" for name in NUMBERED)
    train.write_text(f"image,label\n{rows}", "utf-8")
    domain = open_files(train, test)
    assert domain.classes == tuple(map(str, range(12)))
    assert [domain.classes[x] for x in domain.test.labels] == NUMBERED
    named = parquet(tmp_path / "n.parquet", range(12), NUMBERED[::-1])  # numbers with names
    domain = open_files(named, test)
    assert [domain.classes[x] for x in domain.test.labels] == NUMBERED
    with pytest.raises(DataError, match=TOLD):  # numbers that may be places
        open_files(parquet(tmp_path / "a.parquet", range(12), None), test)
