"""Labelled images as a reader found them, and each label's place among the classes; no guess."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import numpy as np
from PIL import Image

from prunion.runtime.base import listed, shown
from prunion.runtime.errors import DataError
from prunion.runtime.images.image_set import ImageSet, set_digest

__all__ = [
    "Split",
    "check_label",
    "check_one_reading",
    "number_labels",
    "plain_name",
    "unnumbered",
    "written_labels",
]

# Up to where it overflows a double; digits of any script.
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d{1,3})?")


@dataclass(frozen=True, eq=False)
class Split:
    """Training or test images as a reader found them, before their classes have numbers.

    Attributes:
        labels: one for each image, as stored: a name, or a whole number.
        names: the class names that whole numbers count through; None where nothing names classes.
        read: decodes the i-th image.
        place: how messages name the i-th image.
        skipped: what was passed over and why, with how many.
        met: images that the network gets otherwise than they are stored, and how, with how many.
        empty: what is wrong with a class of `names` that has no image, and what to do but add some.
        prints, marks: as of an `ImageSet`.
        typed: whole numbers are stored as such and may be places; one that is text is a name.
    """

    labels: Sequence[Any]
    names: tuple[str, ...] | None
    read: Callable[[int], Image.Image]
    place: Callable[[int], str]
    skipped: Mapping[str, int] = field(default_factory=dict)
    met: Mapping[str, int] = field(default_factory=dict)
    empty: Callable[[str], tuple[str, str]] | None = None
    prints: np.ndarray | None = None
    marks: np.ndarray | None = None
    typed: bool = False

    def numbered(self, numbers: np.ndarray) -> ImageSet:
        """The images with the places of their labels among the classes, int64 `[N]`."""
        digest = set_digest(numbers, self.prints)
        return ImageSet(numbers, self.read, digest, self.prints, self.marks, self.place)


def number_labels(
    split: Split,
    classes: tuple[str, ...],
    foreign: Iterable[str] = (),
    otherwise: str = "",
    *,
    counted: bool = False,
) -> np.ndarray:
    """The place of each label in `classes`, `[N]` int64; -1 for those of `foreign` classes.

    Raises DataError, naming the image, for a label that is none, and for whole numbers that may be
    names of classes as well as their places; `otherwise` is what to do about images without labels
    but to give labelled ones.

    Args:
        counted: the classes were named beside numbers that are their places, so that other numbers
            may be such places too.
    """
    check_one_reading(split, classes, counted)
    position: dict[Any, int] = {name: index for index, name in enumerate(classes)}
    position |= dict.fromkeys(foreign, -1)
    if split.names is not None:  # whole numbers count through the split's own names
        position |= {index: position[name] for index, name in enumerate(split.names)}
    numbers = np.empty(len(split.labels), np.int64)
    for index, value in enumerate(split.labels):
        check_label(split, index, value)
        own = value if split.names is not None else str(value)
        if own not in position:
            raise DataError(unnumbered(split, index, _none_of(classes), otherwise))
        numbers[index] = position[own]
    return numbers


def check_one_reading(split: Split, classes: tuple[str, ...], counted: bool = False) -> None:
    """Raise DataError if labels 0, 1, 2 may mean the classes so named, or the first three.

    Classes in the order of their numbers were most likely named by labels like these, and numbers
    beside names are names.
    """
    if split.names is not None or not split.typed or any(isinstance(x, str) for x in split.labels):
        return
    labels = {x for x in split.labels if isinstance(x, int) and not isinstance(x, bool)}
    places = {name: place for place, name in enumerate(classes)}
    numbers = [number for name in classes if (number := _whole(name)) is not None]
    if not counted and numbers == sorted(numbers):
        return
    if all(0 <= x < len(classes) for x in labels):
        value = next((x for x in sorted(labels) if places.get(str(x), x) != x), None)
        if value is not None:
            raise DataError(
                f"{split.place(split.labels.index(value))} has label {value}, and nothing says "
                f"whether that is class {str(value)!r} or the class at place {value}, "
                f"{classes[value]!r}: write labels as text, the classes' names (of a tar in "
                "each sample's .json), or name the classes in the file"
            )


def check_label(split: Split, index: int, value: Any) -> None:
    """Raise DataError, naming the image, for a label that is neither a whole number nor text."""
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise DataError(
            f"{split.place(index)} has label {shown(value)}: give a whole number or a name"
        )


def unnumbered(split: Split, index: int, none_of: str, otherwise: str = "") -> str:
    """What is wrong with the label of an image that is `none_of` the classes, and the fix."""
    value = split.labels[index]
    fix = "correct it, or write both sets' class names alike"
    if isinstance(value, int) and value < 0:
        which = "no image here has" if set(split.labels) == {value} else "it marks one without"
        fix = f"{which} a label; give labelled images{otherwise}"
    return f"{split.place(index)} has label {shown(value)}, {none_of}: {fix}"


def _none_of(classes: tuple[str, ...]) -> str:
    return f"none of the {len(classes)} classes ({listed(classes, 5)})"


def plain_name(name: str) -> str:
    """A name without what a reader does not see: case, code points, spaces, a number's spelling.

    1, 01, +1 and 1.0, which tables make of 1 in a column that lacks a value somewhere, are one.
    """
    plain = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
    if not NUMBER.fullmatch(plain):
        return plain
    sign, digits, exponent = Decimal(plain).as_tuple()
    figures = "".join(map(str, digits)).lstrip("0")
    short = figures.rstrip("0")
    if not short:
        return "0"
    return f"{'-' * sign}{short}e{int(exponent) + len(figures) - len(short)}"


def written_labels(values: list[str]) -> list[Any]:
    """What labels that are written as text stand for: numbers where all are, nothing, or names."""
    whole = [_whole(value) for value in values]
    if None not in whole:
        return whole
    # Among names -1 still marks an image without a label, and is refused as such.
    return [
        None if not value.strip() else number if number is not None and number < 0 else value
        for value, number in zip(values, whole, strict=True)
    ]


def _whole(text: str) -> int | None:
    """The number that a text writes plainly; 007 and 1e3 are names."""
    plain = text.removeprefix("-")
    fits = plain.isascii() and plain.isdigit() and len(plain) < 19
    return int(text) if fits and str(int(text)) == text else None
