"""Data sets of the Hugging Face hub, and what `save_to_disk` of their library wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from prunion.runtime.base import Orientation, install_hint, reason_of
from prunion.runtime.errors import DataError, MissingDependencyError
from prunion.runtime.images import ImageCheck, Split, decode_image
from prunion.trainer.config import DomainConfig
from prunion.trainer.data.sources.named import Part, check_splits

__all__ = ["open_huggingface"]

ROWS_AT_ONCE = 256
BYTES = ("binary", "large_binary", "binary_view")  # what a Value of encoded images is called
CAST = "cast the column of images to datasets.Image, and save the set"
SAVED = ("dataset_dict.json", "state.json")  # what `save_to_disk` of datasets leaves in a folder


def open_huggingface(config: DomainConfig, part: Part, orientation: Orientation = "exif") -> Split:
    """The labels and images of one part of a Hugging Face data set.

    It is one of the hub by its id, a folder of such a set's files, or what `save_to_disk` wrote.
    Raises MissingDependencyError without `datasets`, ConfigError if one split is to be two parts,
    DataError if the set cannot be fetched, has no image and class columns, or a row no image.
    """
    try:
        import datasets
    except ImportError:
        raise MissingDependencyError(
            f"[domains.{config.name}] reads a Hugging Face data set, and the package datasets is "
            f"not installed: {install_hint('huggingface')}"
        ) from None
    check_splits(config)
    split = getattr(config, f"{part}_split")
    saved = any((Path(config.dataset) / name).is_file() for name in SAVED)
    try:
        if saved:
            dataset = _of_saved(datasets.load_from_disk(config.dataset), config, part)
        else:
            dataset = datasets.load_dataset(config.dataset, split=split)
    except DataError:
        raise
    except Exception as exc:  # the hub client raises many kinds, most of them not its own
        reason = reason_of(exc)
        raise DataError(
            f"[domains.{config.name}] cannot load {config.dataset}, split {split} ({reason}): "
            "correct the name or the split, or check the network"
        ) from None
    dataset = dataset.with_format(None)  # which is saved too
    image, label = _columns(dataset, config)
    names = getattr(dataset.features[label], "names", None)
    encoded = dataset.select_columns([image])
    if isinstance(dataset.features[image], datasets.Image):
        encoded = encoded.cast_column(image, datasets.Image(decode=False))

    def place(index: int) -> str:
        return f"{config.dataset}, split {split}, row {index}"

    def read(index: int) -> Any:
        data = _encoded(encoded[index][image], place(index))
        return decode_image(data, place(index), orientation, prints[index])

    check = ImageCheck(orientation)
    for start in range(0, len(encoded), ROWS_AT_ONCE):
        cells = encoded[start : start + ROWS_AT_ONCE][image]
        places = [place(index) for index in range(start, start + len(cells))]
        check.check(list(map(_encoded, cells, places)), places)
    prints = np.array(check.prints, np.int64)
    return Split(
        labels=list(dataset[label]),
        names=tuple(map(str, names)) if names else None,
        read=read,
        place=place,
        met=check.met,
        prints=prints,
        typed=True,
    )


def _encoded(cell: Any, place: str) -> bytes | Path:
    """An image's file, or its bytes. Raises DataError if a row has neither."""
    if isinstance(cell, bytes):
        cell = {"bytes": cell}
    if cell is not None and cell["bytes"]:
        data: bytes = cell["bytes"]
        return data
    if cell is None or not cell.get("path"):
        raise DataError(f"{place} has no image: remove the row from the set, or give it one")
    return Path(cell["path"])


def _of_saved(dataset: Any, config: DomainConfig, part: Part) -> Any:
    """What was saved of one part: of a dictionary of splits, or one set, which is of one split.

    One that does not say of which is for training: answering for any would make training images of
    test images.
    """
    split = getattr(config, f"{part}_split")
    if hasattr(dataset, "keys"):
        if split not in dataset:
            raise ValueError(f"it has the splits {', '.join(dataset)}")
        return dataset[split]
    own = str(dataset.split or config.train_split)
    if own == split:
        return dataset
    if part == "train":
        raise ValueError(f"it is the split {own}")
    held = "validation_holdout = 0.1" if part == "validation" else "holdout = 0.2"
    raise DataError(
        f"[domains.{config.name}] {config.dataset} is one set, the split {own}, and {part}_split "
        f"is {split!r}: set {held} in its place, or save a DatasetDict"
    )


def _columns(dataset: Any, config: DomainConfig) -> tuple[str, str]:
    """The image and the class column: as the run names them, or `image`, `label`, or the only ones.

    Raises DataError where that leaves several, or none.
    """
    where = f"[domains.{config.name}]"
    kinds = {name: type(feature).__name__ for name, feature in dataset.features.items()}
    for key in ("image_column", "label_column"):
        if getattr(config, key) not in ("", *kinds):
            raise DataError(
                f"{where} {key} is {getattr(config, key)!r}, {config.dataset} has "
                f"{', '.join(kinds)}: correct it"
            )
    images = [name for name, kind in kinds.items() if kind == "Image"]
    labels = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    encoded = [name for name, feature in dataset.features.items() if _holds_bytes(feature)]
    if config.image_column:
        if config.image_column not in (*images, *encoded):
            others = ", ".join((*images, *encoded))
            raise DataError(
                f"{where} image_column is {config.image_column!r}, which is no column of images "
                f"but {kinds[config.image_column]}: "
                + (f"name one that is ({others})" if others else CAST)
            )
        images = [config.image_column]
    elif not images:  # as Parquet that another program wrote has it
        images = ["image"] if "image" in encoded else encoded
        if not images:
            raise DataError(
                f"{where} {config.dataset} has no column of images among {', '.join(kinds)}: {CAST}"
            )
    elif "image" in images:  # beside a mask, say
        images = ["image"]
    if config.label_column or "label" in labels:
        labels = [config.label_column or "label"]
    if len(images) != 1 or len(labels) != 1:
        raise DataError(
            f"{where} {config.dataset} has {len(images)} image and {len(labels)} class "
            f"columns among {', '.join(kinds)}: name one of each with image_column and label_column"
        )
    return images[0], labels[0]


def _holds_bytes(feature: Any) -> bool:
    """Whether a column that nobody calls images holds their files: bytes, or `{bytes, path}`."""
    inner = feature.get("bytes") if isinstance(feature, dict) else feature
    return getattr(inner, "dtype", "") in BYTES
