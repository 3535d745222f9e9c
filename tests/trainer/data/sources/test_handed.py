"""Data sets in hand: labels are those of the images, names stand for their numbers."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Subset

from prunion.runtime.errors import ConfigError, DataError
from prunion.trainer.config import DomainConfig
from prunion.trainer.data import Domain, open_domain
from prunion.trainer.data.sources.handed import _mark
from tests.support.images import picture


class Given:
    """Eight images of classes 0 and 1 in turn, as torchvision's data sets keep theirs."""

    def __init__(self, transform: Callable[[int], Any] = int, **kept: Any) -> None:
        self.targets, self.transform = [0, 1] * 4, transform
        vars(self).update(kept)

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return picture(index), self.transform(index % 2)


def opened(train: Any, test: Any = None) -> Domain:
    return open_domain(DomainConfig("d", "python"), 0, handed=(train, test or train))


def test_labels_are_those_of_the_images(caplog: pytest.LogCaptureFixture) -> None:
    domain = opened(Given(lambda label: 1 - label, classes=["ant", "bee"]))
    assert domain.train.labels.tolist() == [1, 0] * 4
    assert domain.classes == ("0", "1")  # which of them is "ant" nobody can say
    assert "image 0 has label 1, and the list that the data set keeps says 0" in caplog.text
    domain = opened(Given(["cat", "dog"].__getitem__))
    assert (domain.classes, domain.train.labels.tolist()) == (("cat", "dog"), [0, 1] * 4)


def test_a_list_of_names_agrees_with_images_that_have_numbers() -> None:
    given = Given(targets=["cat", "ant"] * 4, classes=["cat", "ant"])
    domain = opened(given)
    assert (domain.classes, domain.train.labels.tolist()) == (("cat", "ant"), [0, 1] * 4)


def test_an_item_that_cannot_be_read_is_named_with_its_cause() -> None:
    """It was told as a data set that gives no labels."""

    class Broken(Given):
        def __len__(self) -> int:
            return 20

        def __getitem__(self, index: int) -> tuple[Any, Any]:
            if index == 7:  # none of those that are looked at first
                raise RuntimeError("disk on fire")
            return super().__getitem__(index)

    with pytest.raises(DataError, match=r"train image 7 cannot be read .*disk on fire") as raised:
        opened(Broken(targets=None))
    assert isinstance(raised.value.__cause__, RuntimeError)


def test_a_label_that_is_another_one_later_is_told() -> None:
    given = Given()
    domain = opened(given)
    assert domain.train.image(3).size == (20, 16)
    given.transform = lambda label: 0
    with pytest.raises(DataError, match="train image 3 has label 0, and the data set told 1"):
        domain.train.image(3)


def test_images_that_change_by_chance_are_told(caplog: pytest.LogCaptureFixture) -> None:
    """Kept in memory, the first crop of each was the only one that training ever saw."""
    drawn = np.random.default_rng(0)

    class Turned(Given):
        def __getitem__(self, index: int) -> tuple[Any, Any]:
            image, label = super().__getitem__(index)
            return image.transpose(drawn.integers(2)), label

    opened(Given())
    assert not caplog.text
    opened(Turned())
    assert "[domains.d] train image" in caplog.text
    assert "is another one each time it is read" in caplog.text


def test_images_that_are_in_training_and_test_are_told() -> None:
    """The same set given twice, or parts of one that overlap."""
    given: Any = Given()
    told = "of {} test images are training images too"
    assert any("8 " + told.format(8) in x for x in opened(given).found["remarks"])
    first, last = Subset(given, range(5)), Subset(Subset(given, range(2, 8)), range(1, 6))
    assert any("2 " + told.format(5) in x for x in opened(first, last).found["remarks"])
    assert not opened(Subset(given, range(4)), Subset(given, range(4, 8))).found["remarks"]


def test_a_tensor_without_pixels_is_refused() -> None:
    class Empty(Given):
        def __getitem__(self, index: int) -> tuple[Any, Any]:
            return torch.zeros(3, 0, 5), index % 2

    with pytest.raises(DataError, match=r"image 0 is a float32 Tensor|image 0 is a torch.float32"):
        opened(Empty())


@pytest.mark.parametrize(
    "kept",
    [
        {"class_to_idx": {"bee": 1, "ant": 0}},
        {"class_to_idx": {"ant": 0, "bee": 1}, "classes": ("ant", "bee")},
        {"classes": {0: "ant", 1: "bee"}},
        {"classes": {"bee": 1, "ant": 0}},
    ],
)
def test_names_stand_for_their_numbers(kept: dict[str, Any]) -> None:
    assert opened(Given(**kept)).classes == ("ant", "bee")


@pytest.mark.parametrize(
    ("kept", "told"),
    [
        ({"class_to_idx": {"ant": 1, "bee": 2}}, "does not number its classes 0, 1, 2"),
        ({"class_to_idx": {"ant": 1, "bee": 0}, "classes": ["ant", "bee"]}, "class_to_idx says 1"),
        ({"classes": {"ant", "bee"}}, "classes of the kind set: list their names"),
        ({"classes": 2}, "classes of the kind int"),
        ({"classes": {"ant": 0, "bee": 0}}, "does not number its classes"),
    ],
)
def test_names_without_an_order_are_refused(kept: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError, match=told):
        opened(Given(**kept))


def test_parts_and_joins_are_their_sets(caplog: pytest.LogCaptureFixture) -> None:
    """Names, labels and copies are told through `Subset` and `ConcatDataset`."""
    whole = Given(classes=["ant", "bee"])
    domain = opened(Subset(whole, [1, 0, 3, 2]), Subset(whole, [4, 7]))
    assert domain.classes == ("ant", "bee")
    assert (domain.train.labels.tolist(), domain.test.labels.tolist()) == ([1, 0, 1, 0], [0, 1])
    thrice = ConcatDataset([whole, Subset(whole, range(8)), whole])
    config = DomainConfig("d", "python", holdout=0.25)
    domain = open_domain(config, 0, handed=(thrice, None))
    assert domain.classes == ("ant", "bee")
    assert (len(domain.train), len(domain.test)) == (18, 6)
    assert not domain.test.also_in(domain.train)[0]
    assert _mark(Subset(thrice, [-1]), 0) == _mark(whole, 7) != _mark(whole, 6)
    changed = Given(lambda label: 1 - label, classes=["ant", "bee"])
    assert opened(Subset(changed, range(8))).classes == ("0", "1")
    assert "and the list that the data set keeps says 0" in caplog.text


def test_sets_with_other_classes_are_not_joined() -> None:
    joined = ConcatDataset([Given(classes=["ant", "bee"]), Given(classes=["cat", "dog"])])
    with pytest.raises(DataError, match=r"joins data sets with other classes, .*ant.* and .*cat"):
        opened(joined)


@pytest.mark.parametrize(
    ("key", "handed", "part"),
    [
        ("holdout", (Given(), Given()), "test"),
        ("validation_holdout", (Given(), Given(), Given()), "validation"),
    ],
)
def test_what_is_handed_over_is_used(key: str, handed: Any, part: str) -> None:
    options: Any = {key: 0.25}
    with pytest.raises(ConfigError, match=f"{key} is 0.25, and {part} images are handed over too"):
        open_domain(DomainConfig("d", "python", **options), 0, handed=handed)


class Rows(Given):
    """As `datasets.Dataset` gives them: mappings, and class names among the features."""

    def __init__(self, item: Callable[[int], Any]) -> None:
        super().__init__(targets=None, item=item)
        self.features = {"image": None, "label": SimpleNamespace(names=["ant", "bee"])}

    def __getitem__(self, index: int) -> Any:
        return self.item(index)


def test_items_may_be_mappings_of_an_image_and_a_label() -> None:
    domain = opened(Rows(lambda index: {"label": index % 2, "image": picture(index), "id": 7}))
    assert (domain.classes, domain.train.labels.tolist()) == (("ant", "bee"), [0, 1] * 4)
    assert domain.train.image(3).tobytes() == picture(3).tobytes()


@pytest.mark.parametrize(
    ("item", "told"),
    [
        ({"pixel_values": 1, "label": 0}, r"dict of \['pixel_values', 'label'\]"),
        (picture(0), "Image"),
        (torch.zeros(3, 8, 8), "Tensor"),
        ((), "tuple"),
        (None, "NoneType"),
    ],
)
def test_what_is_no_pair_is_told_with_what_to_give(item: Any, told: str) -> None:
    """A mapping was told by a bare `0`: what a KeyError says."""
    with pytest.raises(DataError, match=rf"image 0 is no \(image, label\) but {told}: let"):
        opened(Rows(lambda _: item))


def test_no_training_images_are_told_as_such() -> None:
    """The first test image was told to be of no class."""
    with pytest.raises(DataError, match=r"\[domains.d\] has no training images: give some"):
        opened(Subset(Given(), []), Given())
