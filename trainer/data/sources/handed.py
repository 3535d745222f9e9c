"""A `torch.utils.data.Dataset` that a program hands over, in place of files."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Subset

from prunion.runtime.base import Orientation, reason_of, shown
from prunion.runtime.errors import DataError
from prunion.runtime.images import Split, decode_image
from prunion.trainer.data.sources.named import class_names, kept_labels, label_of

__all__ = ["Handed", "HandedSets", "open_dataset"]

log = logging.getLogger(__name__)

COMPARED = 16  # labels of a list that are compared with those of the items before training
COLUMNS = ("image", "label")  # of an item that is a mapping, as in Parquet and on the hub
READ_TWICE = 8  # images that show whether the data set changes them by chance

# Training and test images, the latter None for a holdout, and perhaps validation images.
Handed: TypeAlias = tuple[Any, ...]
HandedSets: TypeAlias = Mapping[str, Handed]  # by the domain's name


def open_dataset(name: str, dataset: Any, part: str, orientation: Orientation) -> Split:
    """The labels and images of a data set that gives `(image, label)`, or a mapping of the two.

    An image is Pillow's, an array `[H, W, 3]` uint8, or a tensor `[3, H, W]`, uint8 or of 0 … 1.
    Raises DataError, naming the image, for anything else.
    """
    where = f"[domains.{name}] {part}"
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise DataError(
            f"{where} is a {type(dataset).__name__}: give a torch.utils.data.Dataset with "
            "__len__ and __getitem__"
        )

    def place(index: int) -> str:
        return f"{where} image {index}"

    def item(index: int) -> Any:
        try:
            found = dataset[index]
        except Exception as exc:  # whatever the user's code raises
            raise DataError(f"{place(index)} cannot be read ({reason_of(exc)}): mend it") from exc
        return _pair(found, place(index))

    def image_of(index: int) -> tuple[Any, Image.Image]:
        found = item(index)
        return found, decode_image(_picture(found[0], place(index)), place(index), orientation)

    # What kind of images these are shows now, not in the first step.
    some = np.linspace(0, len(dataset) - 1, min(READ_TWICE, len(dataset))).astype(int).tolist()
    changing = (i for i in some if _pixels(image_of(i)[1]) != _pixels(image_of(i)[1]))
    if (index := next(changing, None)) is not None:
        log.warning(
            "%s is another one each time it is read: memory keeps the first, which every epoch "
            "then sees, and such test images make accuracy a matter of chance; take what is random "
            "out of the data set, and let [train] augment do it",
            place(index),
        )
    try:
        names = _names(dataset, where)
        labels, own = _labels(dataset, item, where, names)
    except DataError:
        raise
    except Exception as exc:
        raise DataError(
            f"{where} gives no labels ({reason_of(exc)}): let it give (image, label)"
        ) from exc

    def read(index: int) -> Image.Image:
        found, image = image_of(index)
        if not _has(found, labels[index], names):
            raise DataError(
                f"{place(index)} has label {shown(label_of(found))}, and the data set told "
                f"{shown(labels[index])} when it was opened: let it give an image one label"
            )
        return image

    marks = np.array([_mark(dataset, index) for index in range(len(labels))], np.int64)
    return Split(labels, names if own else None, read, place, marks=marks, typed=True)


def _pair(item: Any, place: str) -> Any:
    """Image and label of an item, of a mapping by the names of the usual columns.

    A lone image is left to a data set that keeps its labels in a list.
    """
    if isinstance(item, Mapping):
        if all(key in item for key in COLUMNS):
            return tuple(item[key] for key in COLUMNS)
    elif isinstance(item, (tuple, list)) and item:
        return item
    of = f" of {shown(list(item))}" if isinstance(item, Mapping) else ""
    raise DataError(
        f"{place} is no (image, label) but {type(item).__name__}{of}: let the data set give these, "
        f"or a mapping of {' and '.join(COLUMNS)}"
    )


def _mark(dataset: Any, index: int) -> int:
    """What tells an image from others of this program's data sets, also behind parts of them."""
    while isinstance(dataset, (Subset, ConcatDataset)):
        index = index if index >= 0 else index + len(dataset)
        if isinstance(dataset, Subset):
            dataset, index = dataset.dataset, int(dataset.indices[index])
        else:
            place = bisect_right(dataset.cumulative_sizes, index)
            index -= dataset.cumulative_sizes[place - 1] if place else 0
            dataset = dataset.datasets[place]
    # A place may be counted from the end.
    return hash((id(dataset), index if index >= 0 else index + len(dataset)))


def _names(dataset: Any, where: str) -> tuple[str, ...] | None:
    """Its classes, of a part those of the whole. Raises DataError where joined sets differ."""
    if isinstance(dataset, Subset):
        return _names(dataset.dataset, where)
    if not isinstance(dataset, ConcatDataset):
        return class_names(dataset, where)
    found = [_names(one, where) for one in dataset.datasets]
    other = next((names for names in found if names != found[0]), found[0])
    if other != found[0]:
        raise DataError(
            f"{where} joins data sets with other classes, {shown(found[0])} and {shown(other)}: "
            "number their classes alike before"
        )
    return found[0]


def _kept(dataset: Any) -> list[Any] | None:
    """The labels that it, or what it is a part of, keeps in a list."""
    if isinstance(dataset, Subset):
        whole = _kept(dataset.dataset)
        return None if whole is None else [whole[int(index)] for index in dataset.indices]
    if not isinstance(dataset, ConcatDataset):
        return kept_labels(dataset)
    lists = [_kept(one) for one in dataset.datasets]
    return None if None in lists else [label for part in lists for label in part or ()]


def _labels(
    dataset: Any, item: Callable[[int], Any], where: str, names: tuple[str, ...] | None
) -> tuple[list[Any], bool]:
    """The labels, and whether they are those that the data set's class `names` are of.

    Those of its items count: the list that it keeps may be of before a `target_transform`.
    """
    kept = _kept(dataset)
    if kept is None:
        return [label_of(item(index)) for index in range(len(dataset))], True
    some = np.linspace(0, len(kept) - 1, min(COMPARED, len(kept))).astype(int).tolist()
    wrong = next((i for i in some if not _has(item(i), kept[i], names)), None)
    if wrong is None:
        return kept, True
    log.warning(
        "%s: image %d has label %s, and the list that the data set keeps says %s: labels are taken "
        "from its images, and its class names are not, which may be of the list",
        where,
        wrong,
        shown(label_of(item(wrong))),
        shown(kept[wrong]),
    )
    return [label_of(item(index)) for index in range(len(kept))], False


def _has(item: Any, label: Any, names: tuple[str, ...] | None) -> bool:
    """Whether an item has a label, by number or name; one that is neither is refused elsewhere."""
    if not isinstance(item, (tuple, list)) or len(item) < 2 or not isinstance(label, (int, str)):
        return True
    own = label_of(item)
    if not isinstance(own, (int, str)) or own == label:
        return True
    for number, name in ((own, label), (label, own)):
        if isinstance(number, int) and names is not None and 0 <= number < len(names):
            return names[number] == name
    return False


def _pixels(image: Image.Image) -> tuple[tuple[int, int], bytes]:
    return image.size, image.tobytes()


def _picture(image: Any, place: str) -> Image.Image:
    if isinstance(image, Image.Image):
        return image
    value = image.detach().cpu() if isinstance(image, torch.Tensor) else image
    if isinstance(value, torch.Tensor) and value.dim() == 3 and len(value) in (1, 3):
        inside = value.is_floating_point() and value.numel() > 0
        if inside and value.min() >= 0 and value.max() <= 1:
            value = (value * 255).round().to(torch.uint8)
        value = value.permute(1, 2, 0).expand(-1, -1, 3).numpy()
    if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.shape[2:] == (3,):
        return Image.fromarray(np.ascontiguousarray(value))
    what = type(image).__name__
    if isinstance(value, (torch.Tensor, np.ndarray)):
        what = f"a {value.dtype} {what} of shape {list(image.shape)}"
    raise DataError(
        f"{place} is {what}: give a Pillow image, an array [H, W, 3] of uint8, or a tensor "
        "[3, H, W] of 0 … 1 (before normalisation, which prunion does)"
    )
