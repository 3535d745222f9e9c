"""Labels of any source to class numbers: one place, one set of checks, and never a guess."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from prunion.runtime.base import check_text, listed, shown
from prunion.runtime.bundle import MAX_CLASSES
from prunion.runtime.errors import DataError
from prunion.runtime.images import (
    ImageSet,
    Split,
    check_label,
    check_one_reading,
    number_labels,
    plain_name,
    unnumbered,
)
from prunion.trainer.config import DomainConfig

__all__ = ["Numbered", "number_classes", "parts_among"]

MOST_NAMED = 4  # classes in a message
OTHERWISE = ", or holdout = 0.2 in place of a test set"
PART_NAMES = ("train", "training", "test", "testing", "val", "valid", "validation")


@dataclass(frozen=True, eq=False)
class Numbered:
    """The sets with labels that are places in `classes`; None where one was not given.

    `remarks` are what a user should hear of the classes, one line each.
    """

    classes: tuple[str, ...]
    train: ImageSet
    test: ImageSet | None
    remarks: tuple[str, ...]
    validation: ImageSet | None = None


def number_classes(
    config: DomainConfig, train: Split, test: Split | None, validation: Split | None = None
) -> Numbered:
    """Give every label of the splits its class's number; the training split says the classes.

    A class without test images is a remark. Raises DataError where there is nothing to train on,
    and, naming the image or the class, for a label that is none, for classes that are ordered
    otherwise in another split where both count through them, and for one without training images,
    unless `config.drop_untrained` leaves it out.
    """
    where = f"[domains.{config.name}]"
    if train.names is None and not len(train.labels):  # of names each class is told
        raise DataError(f"{where} has no training images: give some as train")
    classes = _named(where, train, "train")
    drop = config.drop_untrained
    # What is dropped may be images of a class that is spelled otherwise here.
    theirs = [x for split in (test, validation) if split and drop for x in _names_in(split)]
    remarks = [*_look_alikes(dict.fromkeys([*classes, *theirs])), *_like_parts(classes)]
    numbers = number_labels(train, classes, otherwise=OTHERWISE)
    train_set = train.numbered(numbers)
    others: dict[str, ImageSet] = {}
    for part, split in (("test", test), ("validation", validation)):
        if split is not None:
            own = _other_numbers(where, part, split, classes, train, drop)
            others[part] = split.numbered(own)
    kept = np.unique(numbers)
    dropped = [name for index, name in enumerate(classes) if index not in kept]
    if dropped and not drop:
        raise DataError(_untrained(where, dropped, train))
    if drop:
        classes = tuple(classes[index] for index in kept)
        train_set, _ = _only(train_set, kept)
        lost = {"test": 0}
        for part, images in others.items():
            others[part], lost[part] = _only(images, kept)
        if dropped or any(lost.values()):
            names = listed(list(map(repr, dropped)), MOST_NAMED)
            of = f"{names}, without training images, and " if dropped else ""
            counts = " and ".join(f"{count} {part}" for part, count in lost.items())
            remarks.append(f"drop_untrained: left out {of}{counts} images of such classes")
    if len(classes) < 2:
        what = f"one class, {classes[0]!r}" if classes else "no class with training images"
        raise DataError(
            f"{where} has {what}: give at least two to tell apart, such as a class of everything "
            "else that the camera may see"
        )
    if len(classes) > MAX_CLASSES:
        raise DataError(
            f"{where} has {len(classes):,} classes, and a bundle holds {MAX_CLASSES:,} of a "
            "domain: make them fewer"
        )
    return Numbered(
        classes, train_set, others.get("test"), tuple(remarks), others.get("validation")
    )


def _named(where: str, split: Split, part: str) -> tuple[str, ...]:
    """The classes of a split: its names, or the labels' own values in order, as text."""
    names = split.names
    if names is None:
        for index, value in enumerate(split.labels):
            check_label(split, index, value)
            if isinstance(value, int) and value < 0:
                raise DataError(unnumbered(split, index, "which numbers no class", OTHERWISE))
        values = sorted(set(split.labels), key=lambda v: (isinstance(v, str), v))
        names = tuple(map(str, values))
        both = next((x for x in values if isinstance(x, int) and str(x) in values), None)
        if both is not None:
            number, text = (split.place(split.labels.index(x)) for x in (both, str(both)))
            raise DataError(
                f"{where} {part} has label {both} as a number ({number}) and as text ({text}): "
                "write it one way"
            )
    for name in names:
        check_text(
            name,
            1000,
            lambda problem, name=name: DataError(
                f"{where} {part} has a class {shown(name)}, which {problem}: rename it"
            ),
        )
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{where} has two classes named {twice!r}: rename one")
    return names


def _other_numbers(
    where: str, part: str, split: Split, classes: tuple[str, ...], train: Split, drop: bool
) -> np.ndarray:
    """The place of each label in the training classes; -1 for others, if they may be dropped.

    Without names in the split its labels are looked up among the training classes.
    """
    if split.names is None:
        counted = train.names is not None
        foreign = [] if not drop else sorted(set(_names_in(split)) - set(classes))
        return number_labels(split, classes, foreign, OTHERWISE, counted=counted)
    names = _named(where, split, part)
    foreign = [name for name in names if name not in classes]
    lacking = [name for name in classes if name not in names]
    if foreign and not drop:
        told = [f"train lacks {name!r}{_spelled(name, lacking, part)}" for name in foreign]
        told += [f"{part} lacks {name!r}" for name in lacking]
        what = "; ".join(told[:MOST_NAMED]) + ("; …" if len(told) > MOST_NAMED else "")
        raise DataError(
            f"{where} train and {part} have different classes ({what}): make them the same, or set "
            "drop_untrained = true"
        )
    if train.names is None:  # its numbers are the classes' names, or places among these here
        check_one_reading(train, names)
    # Names say what they are in any order, such as folders'; numbers count through one order.
    counts = train.names is not None and all(map(_counts, (train, split)))
    others = [name for name in names if name in classes] != [n for n in classes if n in names]
    if counts and others:
        raise DataError(
            f"{where} train and {part} have different classes (the same names in another "
            "order): make them the same"
        )
    return number_labels(split, classes, foreign, OTHERWISE)


def _counts(split: Split) -> bool:
    return any(isinstance(label, int) for label in split.labels)


def _names_in(split: Split) -> Iterable[str]:
    """Its classes, or its labels as text, but those that mark an image without one."""
    if split.names is not None:
        return split.names
    labels = (x for x in split.labels if isinstance(x, str) or (isinstance(x, int) and x >= 0))
    return sorted(set(map(str, labels)))


def _untrained(where: str, dropped: list[str], train: Split) -> str:
    more = f" (nor of {len(dropped) - 1} other classes)" if len(dropped) > 1 else ""
    problem = f"{where} has no training images of class {dropped[0]!r}"
    otherwise = "remove the class from the data set"
    if train.empty is not None:
        problem, otherwise = train.empty(dropped[0])
    return f"{problem}{more}: add some, set drop_untrained = true, or {otherwise}"


def _only(images: ImageSet, kept: np.ndarray) -> tuple[ImageSet, int]:
    """The images of the classes `kept`, renumbered; and how many there were of others."""
    own = np.isin(images.labels, kept)
    chosen = images.subset(np.flatnonzero(own))
    numbers = np.searchsorted(kept, chosen.labels)
    return chosen.relabelled(numbers), int((~own).sum())


def _look_alikes(classes: Iterable[str]) -> Iterator[str]:
    """Classes that a reader of their names would take for one."""
    seen: dict[str, str] = {}
    for name in classes:
        other = seen.setdefault(plain_name(name), name)
        if other != name:
            yield (
                f"classes {shown(other)} and {shown(name)} differ only in case, spaces or code "
                "points, or in how a number is written: are they one?"
            )


def parts_among(names: Iterable[str]) -> list[str]:
    """The names that a data set's parts usually have, whatever their case; none if only one has."""
    found = [name for name in names if plain_name(name) in PART_NAMES]
    return found if len(found) > 1 else []


def _like_parts(classes: tuple[str, ...]) -> Iterator[str]:
    """Classes that are folders of training and of test images, it seems."""
    if found := parts_among(classes):
        told = listed(list(map(repr, found)), MOST_NAMED)
        yield (
            f"classes {told} are named like parts of a data set: if they are, give these apart as "
            "train and test"
        )


def _spelled(name: str, lacking: list[str], part: str) -> str:
    """What the same name may be spelled as among the training classes."""
    alike = [other for other in lacking if plain_name(other) == plain_name(name)]
    return f", which spells it {alike[0]!a} (and {part} {name!a})" if alike else ""
