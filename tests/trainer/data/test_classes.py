"""Whatever the source, labels get their numbers by one set of rules, and none is guessed."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prunion.runtime.errors import ConfigError, DataError
from prunion.runtime.images import Split
from prunion.trainer.config import DomainConfig
from prunion.trainer.data import Domain, open_domain, open_domains
from prunion.trainer.data.classes import Numbered, number_classes
from tests.support.images import open_files, picture, write_folders, write_parquet

ABC = ("ant", "bee", "cat")


def split(labels: Sequence[Any], names: tuple[str, ...] | None = None) -> Split:
    return Split(labels, names, picture, "image {}".format)


def numbered(train: Split, test: Split | None = None, **options: Any) -> Numbered:
    return number_classes(DomainConfig("d", train=("x",), test=("y",), **options), train, test)


def refused(says: str, train: Split, test: Split | None = None, **options: Any) -> None:
    with pytest.raises(DataError, match=says) as caught:
        numbered(train, test, **options)
    assert "\n" not in str(caught.value)


def test_numbers_count_through_the_split_s_own_names() -> None:
    found = numbered(split([0, 1, 2, "bee"], ABC), split([0, 1, "cat"], ("ant", "cat")))
    assert found.classes == ABC
    assert found.train.labels.tolist() == [0, 1, 2, 1]
    assert found.test is not None
    assert found.test.labels.tolist() == [0, 2, 2]
    assert found.train.labels.dtype == found.test.labels.dtype == np.int64


def test_without_names_a_class_is_called_by_its_label() -> None:
    found = numbered(split([10, 9, 10]), split(["9"]))
    assert found.classes == ("9", "10")
    assert found.test is not None
    assert found.test.labels.tolist() == [0]


def test_a_label_of_minus_one_is_no_class() -> None:
    unlabelled = split([-1, -1], ABC)
    for train in (split([0, 1, 2], ABC), split([0, 1, 2])):
        refused(
            "image 0 has label -1, none of .*no image here has a label; .*holdout",
            train,
            split([-1, -1], train.names),
        )
    refused("image 0 has label -1, none of the 3 classes", unlabelled)
    refused("image 1 has label -1, which numbers no class: it marks one without", split([0, -1]))


@pytest.mark.parametrize("label", [None, True, 0.5, [1, 2], b"ant"])
def test_what_is_no_label_is_refused(label: Any) -> None:
    for names in (None, ABC):
        refused("image 1 has label .*: give a whole number or a name", split([0, label], names))


def test_the_test_set_may_lack_a_class() -> None:
    found = numbered(split([0, 1, 2], ABC), split([0, 1], ("ant", "bee")))
    assert found.classes == ABC
    assert numbered(split([0, 1, 2], ABC), split([0, 2], ABC)).classes == ABC


def test_a_class_without_training_images_is_refused_or_dropped() -> None:
    train = split([0, 2, 0, 2], ABC)
    refused("no training images of class 'bee': .*drop_untrained = true", train)
    found = numbered(train, split([0, 1, 2, 1], ABC), drop_untrained=True)
    assert found.classes == ("ant", "cat")
    assert found.train.labels.tolist() == [0, 1, 0, 1]
    assert found.test is not None
    assert found.test.labels.tolist() == [0, 1]
    assert found.test.image(1).tobytes() == picture(2).tobytes()
    assert found.remarks == (
        "drop_untrained: left out 'bee', without training images, and 2 test images of such "
        "classes",
    )
    refused("has one class, 'ant': give at least two", split([0], ABC), drop_untrained=True)
    refused("has no class with training images", split([], ABC), drop_untrained=True)


def test_a_class_that_only_the_test_set_has_is_refused_or_dropped() -> None:
    train, test = split([0, 1], ("ant", "bee")), split([0, 2, 1], ABC)
    refused(r"different classes \(train lacks 'cat'\): make them the same", train, test)
    found = numbered(train, test, drop_untrained=True)
    assert found.test is not None
    assert found.test.labels.tolist() == [0, 1]
    assert "1 test images" in found.remarks[0]


@pytest.mark.parametrize(
    ("name", "other"),
    [
        *[("Cat", "cat"), ("caf\xe9", "cafe\u0301"), ("dog ", "dog")],
        *[("1", "1.0"), ("01", "1"), ("+1", "1"), ("1e3", "1000"), ("\u0661", "1"), ("-0", "0.0")],
    ],
)
def test_a_spelling_that_differs_is_pointed_at(name: str, other: str) -> None:
    refused(
        r"train lacks .*, which spells it",
        split([0, 1], ("ant", name)),
        split([0, 1], ("ant", other)),
    )
    found = numbered(split([0, 1], (name, other)))
    assert len(found.classes) == 2
    assert "differ only in case, spaces or code points" in found.remarks[0]


def test_other_numbers_are_other_classes() -> None:
    names = ("0", "1", "-1", "10", "0.1", "1.01", "1e5", "1e-5", "v1", "1e999999999", "nan")
    assert numbered(split(range(len(names)), names)).remarks == ()


def test_what_is_dropped_for_its_spelling_is_pointed_at() -> None:
    found = numbered(split([0, 1]), split(["0", "1.0"]), drop_untrained=True)
    assert "'1' and '1.0' differ only" in found.remarks[0]
    assert "1 test images" in found.remarks[1]


def test_a_number_and_its_text_in_one_set_are_told_by_their_rows() -> None:
    refused(
        r"train has label 0 as a number \(image 0\) and as text \(image 2\): write it one way",
        split([0, 1, "0", "x"]),
    )


def test_classes_that_look_like_parts_are_remarked_on() -> None:
    """A folder above training and test images teaches to tell the one from the other."""
    (remark,) = numbered(split([0, 1], ("Test", "Train"))).remarks
    assert remark.startswith("classes 'Test', 'Train' are named like parts of a data set")
    assert numbered(split([0, 1], ("plane", "train"))).remarks == ()


@pytest.mark.parametrize("name", ["", "a\nb", "a\x00", "\udce9"])
def test_a_name_that_cannot_be_written_is_refused_before_training(name: str) -> None:
    says = "is no UTF-8 text: rename it" if name == "\udce9" else "rename it"
    refused(rf"train has a class .*{says}", split([0, 1], ("ant", name)))
    refused(rf"train has a class .*{says}", split(["ant", name]))


def test_two_classes_of_one_name_are_refused() -> None:
    refused("two classes named 'ant': rename one", split([0, 1], ("ant", "ant")))


# The same rules by every source


def test_a_class_may_be_missing_from_the_test_set(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train = write_folders(tmp_path / "train", {"0": 4, "180": 4, "270": 4, "90": 4})
    test = write_folders(tmp_path / "test", {"0": 2, "270": 2, "90": 2}, number=20)
    for _ in range(2):
        config = DomainConfig("d", train=(str(train),), test=(str(test),))
        with caplog.at_level(logging.INFO, "prunion"):
            (domain,) = open_domains([config], 0)
        assert domain.classes == ("0", "180", "270", "90")
        assert domain.test.labels.tolist() == [0, 0, 2, 2, 3, 3]
        assert "no test images of '180'" in caplog.messages[-1]
        assert caplog.records[-1].levelname == "WARNING"
        (test / "180").mkdir(exist_ok=True)  # an empty class folder says the same


def test_an_empty_training_folder_may_be_dropped(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "set", {"ant": 4, "cat": 4})
    (root / "bee").mkdir()
    assert open_files(root, root, drop_untrained=True).classes == ("ant", "cat")
    with pytest.raises(DataError, match=r"bee holds no images .*set drop_untrained = true"):
        open_files(root, root)


def test_one_image_a_class_trains_and_says_what_holdout_needs(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "set", {"a": 1, "b": 1, "c": 1, "d": 1})
    assert len(open_files(root, root).train) == 4
    with pytest.raises(DataError, match=r"none has a second; give test images, or more of a"):
        open_domain(DomainConfig("d", train=(str(root),), holdout=0.2), 0)


def test_parquet_columns_may_have_other_names(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    path = write_parquet(tmp_path / "a.parquet", [1, 0, 1, 0], ["rose", "tench"])
    table = pq.read_table(path).rename_columns(["img", "fine_label"])
    features = {"fine_label": {"names": ["rose", "tench"], "_type": "ClassLabel"}}
    meta = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(meta), path)
    domain = open_files(path, path, image_column="img", label_column="fine_label")
    assert domain.classes == ("rose", "tench")
    assert domain.train.labels.tolist() == [1, 0, 1, 0]
    with pytest.raises(DataError, match=r"no column 'image'.*image_column and label_column"):
        open_files(path, path)


def test_columns_belong_to_tables_of_images(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "set", {"a": 4, "b": 4})
    with pytest.raises(
        ConfigError, match="label_column is for Parquet, tables and tars, but train is a folder"
    ):
        open_files(root, root, label_column="label")
    with pytest.raises(ConfigError, match='source is "torchvision": remove it'):
        DomainConfig("d", source="torchvision", dataset="MNIST", image_column="img")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set with CIFAR-100's columns, an unlabelled split, and one with a class less."""
    datasets = pytest.importorskip("datasets", reason="prunion[huggingface] is optional")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    names = {"coarse_label": ["x", "y"], "fine_label": ["ant", "bee", "cat"]}
    columns: dict[str, Any] = {"img": datasets.Image(), "colour": datasets.Value("string")}
    columns |= {key: datasets.ClassLabel(names=value) for key, value in names.items()}
    (tmp_path / "hub").mkdir()
    for part, fine in (("train", [0, 1, 2, 0, 1]), ("test", [2, 0]), ("validation", [-1, -1])):
        data = {
            "img": [picture(i) for i in range(len(fine))],
            "colour": ["red" if i % 2 else "blue" for i in range(len(fine))],
            "coarse_label": [0] * len(fine),
            "fine_label": fine,
        }
        rows = datasets.Dataset.from_dict(data, features=datasets.Features(columns))
        rows.to_parquet(str(tmp_path / "hub" / f"{part}.parquet"))
    return tmp_path / "hub"


def opened(hub: Path, **options: Any) -> Domain:
    return open_domain(DomainConfig("d", source="huggingface", dataset=str(hub), **options), 0)


def test_hub_columns_are_named_by_keys(hub: Path) -> None:
    with pytest.raises(DataError, match=r"2 class columns .*image_column and label_column"):
        opened(hub)
    domain = opened(hub, image_column="img", label_column="fine_label")
    assert domain.classes == ("ant", "bee", "cat")
    assert domain.test.labels.tolist() == [2, 0]
    assert domain.found["remarks"] == [
        "no test images of 'bee': the accuracy says nothing of such classes",
        "2 of 2 test images are training images too, 2 of them with another label: the accuracy "
        "says less of new ones",
    ]
    assert opened(hub, label_column="colour").classes == ("blue", "red")
    with pytest.raises(DataError, match=r"label_column is 'fine', .* has img, colour, coarse_l"):
        opened(hub, label_column="fine")
    with pytest.raises(DataError, match="image_column is 'colour', which is no column of images"):
        opened(hub, label_column="fine_label", image_column="colour")


def test_an_unlabelled_hub_split_is_refused(hub: Path) -> None:
    with pytest.raises(
        DataError, match=r"split validation, row 0 has label .*no image here has|give"
    ):
        opened(hub, label_column="fine_label", test_split="validation")


def test_torchvision_labels_go_through_the_same_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    class Fake:
        targets: Any = (0, 1, 1, 0, 2)
        classes: Any = (("ant", "emmet"), ("bee",), ("cat",))

        def __init__(self, root: str, train: bool) -> None:
            self.train = train

        def __len__(self) -> int:
            return len(self.targets)

        def __getitem__(self, index: int) -> tuple[Any, Any]:
            return picture(index), self.targets[index]

    monkeypatch.setattr(datasets, "MNIST", Fake)
    config = DomainConfig("d", source="torchvision", dataset="MNIST")
    assert open_domain(config, 0).classes == ABC
    monkeypatch.setattr(Fake, "targets", [0, 1, -1, 0, 2])
    with pytest.raises(DataError, match="image 2 of MNIST in data has label -1, none of"):
        open_domain(config, 0)
    monkeypatch.setattr(Fake, "targets", [np.zeros(3)] * 5)
    with pytest.raises(DataError, match=r"image 0 of MNIST in data has label .*whole number"):
        open_domain(config, 0)
    monkeypatch.setattr(Fake, "targets", np.array([0, 1, 2, 3, 1]))
    monkeypatch.setattr(Fake, "classes", [("crane",), ("crane",), ("maillot",), ("cat",)])
    assert open_domain(config, 0).classes == ("crane (0)", "crane (1)", "maillot", "cat")


def test_more_classes_than_a_bundle_holds_are_not_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunion.trainer.data.classes.MAX_CLASSES", 2)
    refused("has 3 classes, and a bundle holds 2", split([0, 1, 2], ABC), split([0], ABC))
