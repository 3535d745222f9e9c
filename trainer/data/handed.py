"""A `torch.utils.data.Dataset` that a program hands over, in place of files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image

from prunion.runtime.base import Orientation, reason_of
from prunion.runtime.errors import DataError
from prunion.runtime.images import Split, decode_image, digest_of
from prunion.trainer.data.named import class_names, labels_of

__all__ = ["Handed", "HandedSets", "open_dataset"]

# Training and test images, the latter None for a holdout, and perhaps validation images.
Handed: TypeAlias = tuple[Any, ...]
HandedSets: TypeAlias = Mapping[str, Handed]  # by the domain's name


def open_dataset(name: str, dataset: Any, part: str, orientation: Orientation) -> Split:
    """The labels and images of a data set that gives `(image, label)`.

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

    def read(index: int) -> Image.Image:
        try:
            image = dataset[index][0]
        except Exception as exc:  # whatever the user's code raises
            raise DataError(f"{place(index)} cannot be read ({reason_of(exc)}): mend it") from exc
        return decode_image(_picture(image, place(index)), place(index), orientation)

    if len(dataset):
        read(0)  # what kind of images these are shows now, not in the first step
    try:
        labels = labels_of(dataset)
    except Exception as exc:
        raise DataError(
            f"{where} gives no labels ({reason_of(exc)}): let it give (image, label)"
        ) from exc
    return Split(labels, class_names(dataset), read, place, digest_of)


def _picture(image: Any, place: str) -> Image.Image:
    if isinstance(image, Image.Image):
        return image
    value = image.detach().cpu() if isinstance(image, torch.Tensor) else image
    if isinstance(value, torch.Tensor) and value.dim() == 3 and len(value) in (1, 3):
        if value.is_floating_point() and value.min() >= 0 and value.max() <= 1:
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
