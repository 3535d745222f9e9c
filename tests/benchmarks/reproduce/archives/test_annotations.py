"""A domain's annotation files mean the same by one number, or nothing is read of them."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunion.benchmarks.reproduce.archives.decathlon import open_decathlon
from prunion.benchmarks.reproduce.archives.images import BenchmarkImages, Picture
from prunion.benchmarks.reproduce.table.measured import _right
from prunion.runtime.errors import DataError
from tests.benchmarks.reproduce.archives.small import coloured, write_decathlon


def written(folder: Path, *, labels: bool = False) -> Path:
    """A Decathlon of one domain, its kit unpacked to be changed; the folder of annotations."""
    parts = {x: coloured(["2", "10"], 3, seed) for seed, x in enumerate(("train", "val", "test"))}
    write_decathlon(folder, {"gtsrb": parts}, labels=labels)
    with tarfile.open(folder / "decathlon-1.0-devkit.tar.gz") as tar:
        tar.extractall(folder, filter="data")
    return folder / "decathlon-1.0" / "annotations"


def edit(file: Path, change: Callable[[Any], object]) -> None:
    value = json.loads(file.read_text("utf-8"))
    change(value)
    file.write_text(json.dumps(value), "utf-8")


def swap_names(value: Any) -> None:
    one, other = value["categories"]
    one["name"], other["name"] = other["name"], one["name"]


def count_on(value: Any) -> None:
    for image in value["images"]:
        image["id"] += 1000
    for annotation in value["annotations"]:
        annotation["image_id"] += 1000


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("val", swap_names, "gtsrb_val.json calls category 50000001 '10', and .*train.json"),
        ("test", swap_names, "gtsrb_test.json calls category"),
        ("test_stripped", swap_names, "gtsrb_test_stripped.json calls category"),
        ("test", lambda v: v["categories"].append({"id": 7, "name": "x"}), "calls it nothing"),
        ("train", lambda v: v["categories"].append({"id": 50000001, "name": "x"}), "have one id"),
        ("test", count_on, "are of different images, such as"),
        ("test_stripped", lambda v: v["images"].pop(), "are of different images, such as"),
    ],
)
def test_files_that_contradict_each_other_are_refused(
    tmp_path: Path, part: str, change: Callable[[Any], object], said: str
) -> None:
    """Of each file alone nothing is wrong: classes were swapped, and every answer was wrong."""
    edit(written(tmp_path, labels=True) / f"gtsrb_{part}.json", change)
    with pytest.raises(DataError, match=said) as caught:
        open_decathlon(tmp_path, tmp_path / "work")
    assert "\n" not in str(caught.value)


def test_labels_of_test_images_may_lie_beside_a_kit_that_is_not_unpacked(tmp_path: Path) -> None:
    """They are given out apart from it."""
    parts = {x: coloured(["2", "10"], 3, seed) for seed, x in enumerate(("train", "val", "test"))}
    write_decathlon(tmp_path, {"gtsrb": parts})
    (without,) = open_decathlon(tmp_path, tmp_path / "without")
    labels = written(tmp_path / "elsewhere", labels=True) / "gtsrb_test.json"
    (tmp_path / "annotations").mkdir()
    labels.rename(tmp_path / "annotations" / labels.name)
    (found,) = open_decathlon(tmp_path, tmp_path / "work")
    assert not without.truth and len(found.truth) == len(found.unlabelled) > 0


def test_order_and_what_else_a_file_holds_say_nothing(tmp_path: Path) -> None:
    places = written(tmp_path, labels=True)
    (before,) = open_decathlon(tmp_path, tmp_path / "work")
    for part in ("train", "val", "test", "test_stripped"):

        def change(value: Any) -> None:
            for key in ("images", "annotations", "categories"):
                value[key].reverse()
            for annotation in value["annotations"]:
                annotation.update(area=float("nan"), more=None)

        edit(places / f"gtsrb_{part}.json", change)
    (after,) = open_decathlon(tmp_path, tmp_path / "other")
    assert after.categories == before.categories and after.truth == before.truth
    assert {x.number for x in after.unlabelled} == {x.number for x in before.unlabelled}


def test_a_domain_without_annotations_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parts = {x: coloured(["2", "10"], 3, seed) for seed, x in enumerate(("train", "val", "test"))}
    write_decathlon(tmp_path, {"gtsrb": parts, "dtd": parts})
    with tarfile.open(tmp_path / "decathlon-1.0-devkit.tar.gz") as tar:
        tar.extractall(tmp_path, filter="data")
    (tmp_path / "decathlon-1.0" / "annotations" / "dtd_train.json").unlink()
    with caplog.at_level("WARNING"):
        assert [x.name for x in open_decathlon(tmp_path, tmp_path / "work")] == ["gtsrb"]
    assert ", dtd, " in caplog.text and "ucf101: no annotations in " in caplog.text
    assert "gtsrb" not in caplog.messages[0].partition(":")[0]


def test_a_trials_answers_are_held_against_labels_that_are_known() -> None:
    """It answers the first images, and has labels of some of each class: the rest were wrong."""
    asked = tuple(Picture(number, Path(), "") for number in range(4))
    domain = BenchmarkImages("a", ("x",), unlabelled=asked, truth={1: "b", 2: "c", 9: "b"})
    assert _right(domain, {"a": ["b", "b", "b", "b"]}) == 0.5
    assert _right(domain, {}) is None
    alone = BenchmarkImages("a", ("x",), unlabelled=asked, truth={9: "b"})
    assert _right(alone, {"a": ["b", "b", "b", "b"]}) is None
