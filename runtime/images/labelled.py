"""Labelled images for a classifier whose classes are known already: each is found by its name."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prunion.runtime.base import Orientation, listed, path_argument, shown
from prunion.runtime.errors import DataError, InputError
from prunion.runtime.images.image_set import ImageSet
from prunion.runtime.images.labels import Split, check_label, number_labels
from prunion.runtime.images.sources import image_files, open_images

__all__ = ["open_labelled"]

MOST_NAMED = 4  # unknown classes in a message
COLUMNS = ("image", "label")


def open_labelled(
    data: Sequence[Path | str] | Path | str,
    domain: str,
    classes: tuple[str, ...],
    orientation: Orientation,
    columns: tuple[str, str] = COLUMNS,
    *,
    skip_unknown: bool = False,
    skipped: dict[str, int] | None = None,
) -> tuple[ImageSet, tuple[str, ...], dict[str, int]]:
    """Images of a domain, how messages name each, and how many were left out of which class.

    Args:
        data: a folder of class folders, or one or several Parquet files, tar shards or tables.
        classes: the domain's; a label is a place among them.
        columns: of images and of labels in Parquet, tars and tables.
        skip_unknown: leave out images of other classes, instead of refusing them.
        skipped: is given what was passed over in folders and tars, with how many.

    Raises:
        DataError: the data cannot be read, an image has no label, or one that is no class.
        InputError: there are no `data`, or `columns` are named of class folders, which have none.
    """
    beside: Counter[str] = Counter()
    split = _open(data, columns, orientation, beside)
    if skipped is not None:
        skipped.update({**split.skipped, **beside})
    unknown = _unknown(split, set(classes))
    if unknown and not skip_unknown:
        names = list(unknown)
        names[:MOST_NAMED] = [shown(x) + _nearest(x, classes) for x in names[:MOST_NAMED]]
        raise DataError(
            f"the data have images of classes that {domain} does not know: "
            f"{listed(names, MOST_NAMED)}; name them as `prunion inspect --json` shows, or leave "
            "such images out with --skip-unknown"
        )
    unused = [name for name in split.names or () if name not in classes]
    labels = number_labels(split, classes, {*unknown, *unused})
    chosen = np.flatnonzero(labels >= 0)
    if not len(chosen):
        raise DataError(f"the data have no image of a class that {domain} knows: give some")
    places = tuple(split.place(int(index)) for index in chosen)
    return split.numbered(labels).subset(chosen), places, unknown


def _open(
    data: Sequence[Path | str] | Path | str,
    columns: tuple[str, str],
    orientation: Orientation,
    beside: Counter[str],
) -> Split:
    several = isinstance(data, Iterable) and not isinstance(data, (str, bytes))
    given: Iterable[Any] = data if isinstance(data, Iterable) and several else [data]
    paths = tuple(path_argument("data", path) for path in given)
    if not paths:
        raise InputError(
            "no data given: give a folder of class folders, or .parquet, .tar, .csv or .jsonl files"
        )
    files = image_files(paths, beside)
    for path in files:
        if not path.exists():
            raise DataError(f"{path} does not exist: correct the path")
    if columns != COLUMNS and files[0].is_dir():
        raise InputError(f"{files[0]} holds class folders, without columns: name none")
    split = open_images(files, columns, orientation)
    if split is None:
        raise DataError(
            f"{files[0]}: give one folder of class folders, or .parquet, .tar, .csv or .jsonl files"
        )
    return split


def _unknown(split: Split, known: set[str]) -> dict[str, int]:
    """How many images there are of each class that is not `known`; without what is no label."""
    unknown: dict[str, int] = {}
    for index, value in enumerate(split.labels):
        check_label(split, index, value)
        if isinstance(value, int) and value < 0:
            continue  # no label at all, which leaving out classes must not hide
        if isinstance(value, int) and split.names is not None:
            if value >= len(split.names):
                continue
            value = split.names[value]
        if str(value) not in known:
            unknown[str(value)] = unknown.get(str(value), 0) + 1
    return unknown


def _nearest(name: str, classes: tuple[str, ...]) -> str:
    folded = {known.casefold(): known for known in classes}
    close = difflib.get_close_matches(name.casefold(), folded, n=2, cutoff=0.5)
    return f" (did you mean {' or '.join(shown(folded[x]) for x in close)}?)" if close else ""
