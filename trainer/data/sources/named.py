"""Data sets by name from torchvision.datasets, and what their classes and labels are."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from prunion.runtime.base import Orientation, reason_of, shown
from prunion.runtime.errors import ConfigError, DataError, MissingDependencyError
from prunion.runtime.images import Split, decode_image
from prunion.trainer.config import DomainConfig

__all__ = [
    "PARTS",
    "Part",
    "check_splits",
    "class_names",
    "kept_labels",
    "label_of",
    "open_torchvision",
]

Part = Literal["train", "test", "validation"]
PARTS: tuple[Part, ...] = ("train", "test", "validation")


def check_splits(config: DomainConfig) -> None:
    """Raise ConfigError if one split of a named set is to train and to test or watch the run on.

    Or if a holdout takes the place of one that was named.
    """
    if config.holdout and config.test_split not in ("test", config.train_split):
        raise ConfigError(
            f"[domains.{config.name}] holdout is {config.holdout}, but test_split is "
            f"{config.test_split!r} too: leave one out"
        )
    parts: tuple[Part, ...] = ("train", "validation") if config.holdout else PARTS
    splits = [(f"{part}_split", getattr(config, f"{part}_split")) for part in parts]
    for place, (key, split) in enumerate(splits):
        other = next((x for x, earlier in splits[:place] if split and split == earlier), None)
        if other is not None:
            held = "validation_holdout = 0.1" if key == "validation_split" else "holdout = 0.2"
            raise ConfigError(
                f"[domains.{config.name}] {key} is {split!r}, and so is {other}: name another "
                f"split, or set {held} in its place"
            )


def open_torchvision(config: DomainConfig, part: Part, orientation: Orientation = "exif") -> Split:
    """The labels and images of one part of a torchvision data set.

    Raises ConfigError if torchvision has no such classification set, or one split is to be two
    parts, DataError if its files are not there.
    """
    check_splits(config)
    dataset = _torchvision_dataset(config, part)

    def place(index: int) -> str:
        return f"image {index} of {config.dataset} in {config.root}"

    def read(index: int) -> Any:
        return decode_image(item(index)[0], place(index), orientation)

    def item(index: int) -> Any:
        try:
            return dataset[index]
        except Exception as exc:  # each set has a reader of its own, scipy's, h5py's and others
            raise DataError(
                f"{place(index)} cannot be read ({reason_of(exc)}): fetch the data set again"
            ) from None

    kept = kept_labels(dataset)
    return Split(
        labels=[label_of(item(i)) for i in range(len(dataset))] if kept is None else kept,
        names=class_names(dataset, f"[domains.{config.name}] {config.dataset}"),
        read=read,
        place=place,
        typed=True,
    )


def _torchvision_dataset(config: DomainConfig, part: Part) -> Any:
    from torchvision import datasets

    where, name = f"[domains.{config.name}]", config.dataset
    cls = getattr(datasets, name, None) if name in datasets.__all__ else None
    if cls is None:
        close = difflib.get_close_matches(name, datasets.__all__, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "see torchvision's list of data sets"
        raise ConfigError(f"{where} name {name!r} is not in torchvision.datasets: {hint}")
    accepted = inspect.signature(cls).parameters
    options: dict[str, Any] = {"root": config.root}
    if "train" in accepted and part != "validation":
        said = getattr(config, f"{part}_split")
        if said != part:
            raise ConfigError(
                f"{where} {part}_split is {said!r}, and {name} has the parts 'train' and 'test' "
                "alone, one for each: leave the key out"
            )
        options["train"] = part == "train"
    elif "train" in accepted:
        raise ConfigError(
            f"{where} validation_split is {config.validation_split!r}, and {name} has no third "
            "part: set validation_holdout = 0.1 in its place"
        )
    elif any("train" in inspect.signature(base).parameters for base in cls.__mro__[1:-1]):
        # EMNIST's `split` is one of six sets, each with both parts: two of them share images.
        raise ConfigError(
            f"{where} name {name!r} takes the part by an option that a run file cannot say: hand "
            "it over from Python, or write its images to class folders and give train and test"
        )
    elif "split" in accepted:
        options["split"] = getattr(config, f"{part}_split")
    else:
        raise ConfigError(
            f"{where} name {name!r} has no training and test split: write its images to class "
            "folders and give train and test"
        )
    if "download" in accepted:
        options["download"] = config.download
    try:
        return cls(**options)
    except TypeError as exc:  # what it cannot do without is no key of a run file
        raise ConfigError(
            f"{where} name {name!r} takes more than a run file can say ({reason_of(exc)}): hand it "
            "over from Python, or write its images to class folders and give train and test"
        ) from None
    except ValueError as exc:  # an unknown split
        raise ConfigError(f"{where} cannot open {name}: {exc}") from None
    except ImportError as exc:
        raise MissingDependencyError(f"{name} needs another package: {exc}") from None
    except (OSError, RuntimeError) as exc:
        raise DataError(
            f"{name} is not in {config.root} ({reason_of(exc)}): correct {where} root, or set "
            "download = true"
        ) from None
    except Exception as exc:  # damaged files: of pickle, struct, lzma, json
        raise DataError(
            f"{name} in {config.root} cannot be read ({reason_of(exc)}): fetch the data set again"
        ) from None


def class_names(dataset: Any, where: str) -> tuple[str, ...] | None:
    """The names of its classes, where a data set of torchvision's kind says them.

    `classes` lists them in the order of their numbers; either may be a mapping between the two, as
    `class_to_idx` is. Raises DataError where they number no classes from 0 on, or say two things.
    """
    classes, numbers = getattr(dataset, "classes", None), getattr(dataset, "class_to_idx", None)
    features = getattr(dataset, "features", None)
    if classes is None and numbers is None and isinstance(features, Mapping):
        classes = getattr(features.get("label"), "names", None)  # of the library datasets
    if isinstance(classes, np.ndarray):
        classes = classes.tolist()
    if isinstance(classes, Mapping):
        classes = _by_number(classes, where)
    elif classes is not None and not isinstance(classes, (list, tuple)):
        raise DataError(
            f"{where} has classes of the kind {type(classes).__name__}: list their names in the "
            "order of their numbers"
        )
    if not classes:
        return _distinct(_by_number(numbers, where)) if isinstance(numbers, Mapping) else None
    names = list(map(_class_name, classes))
    if any(isinstance(name, (tuple, list)) for name in classes):
        numbers = None  # of synonyms, as ImageNet's: one of a class may be another class's name
    for name, number in numbers.items() if isinstance(numbers, Mapping) else ():
        if names.count(name) == 1 and names.index(name) != number:
            raise DataError(
                f"{where} has class {name!r} at place {names.index(name)} of its classes, and its "
                f"class_to_idx says {number}: make them say the same"
            )
    return _distinct(names)


def _by_number(classes: Mapping[Any, Any], where: str) -> list[str]:
    """The names of a mapping from names to numbers, or from numbers to names."""
    given = {_plain(key): _plain(value) for key, value in classes.items()}
    if not all(map(_is_number, given)):
        given = {value: key for key, value in given.items()}
    if len(given) < len(classes) or set(given) != set(range(len(given))):
        raise DataError(
            f"{where} does not number its classes 0, 1, 2, …: {shown(dict(classes))}; list their "
            "names in the order of their numbers as classes"
        )
    return [_class_name(given[number]) for number in range(len(given))]


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def kept_labels(dataset: Any) -> list[Any] | None:
    """The labels that it keeps in a list; None where only its items have them."""
    for attribute in ("targets", "_labels", "labels"):
        values = getattr(dataset, attribute, None)
        if values is not None and len(values) == len(dataset):
            return list(map(_plain, values))
    samples = getattr(dataset, "_samples", None)
    if samples is not None and len(samples) == len(dataset):
        return [_plain(label) for _, label in samples]
    return None


def label_of(item: Any) -> Any:
    """The label of an item `(image, label)`."""
    return _plain(item[1])


def _plain(label: Any) -> Any:
    """A label as a number where it is one; what is none stays, to be refused with its image."""
    try:
        return label.item()  # of an array or tensor that holds one number
    except (AttributeError, ValueError, RuntimeError):
        return label


def _class_name(value: Any) -> str:
    """torchvision names a few classes by a tuple of synonyms."""
    return str(value[0] if isinstance(value, (tuple, list)) else value)


def _distinct(names: list[str]) -> tuple[str, ...]:
    """Names that two classes have (ImageNet's two cranes) with the class's number behind them."""
    return tuple(
        f"{name} ({index})" if names.count(name) > 1 else name for index, name in enumerate(names)
    )
