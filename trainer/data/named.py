"""Data sets by name, from torchvision.datasets or the Hugging Face hub."""

from __future__ import annotations

import difflib
import inspect
from pathlib import Path
from typing import Any

import numpy as np

from prunion.runtime.errors import ConfigError, DataError, MissingDependencyError
from prunion.trainer.config import DomainConfig
from prunion.trainer.data.image_set import ImageSet, digest_of
from prunion.trainer.data.images import decode_image, to_rgb

__all__ = ["open_huggingface", "open_torchvision"]


def open_torchvision(config: DomainConfig, *, train: bool) -> tuple[tuple[str, ...], ImageSet]:
    """The class names and images of one split of a torchvision data set.

    Raises ConfigError if torchvision has no such classification set, DataError if its files are
    not there.
    """
    dataset = _torchvision_dataset(config, train)
    labels = np.asarray(_torchvision_labels(dataset), np.int64)
    names = getattr(dataset, "classes", None) or list(getattr(dataset, "class_to_idx", {}))
    classes = tuple(map(_class_name, names or range(int(labels.max()) + 1)))

    def read(index: int) -> Any:
        try:
            return to_rgb(dataset[index][0])
        except (OSError, ValueError, SyntaxError) as exc:
            raise DataError(
                f"image {index} of {config.dataset} in {config.root} cannot be read ({exc}): "
                "fetch the data set again"
            ) from None

    return classes, ImageSet(labels, read, digest_of(labels))


def _torchvision_dataset(config: DomainConfig, train: bool) -> Any:
    from torchvision import datasets

    where, name = f"[domains.{config.name}]", config.dataset
    cls = getattr(datasets, name, None) if name in datasets.__all__ else None
    if cls is None:
        close = difflib.get_close_matches(name, datasets.__all__, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "see torchvision's list of data sets"
        raise ConfigError(f"{where} name {name!r} is not in torchvision.datasets: {hint}")
    accepted = inspect.signature(cls).parameters
    options: dict[str, Any] = {"root": config.root}
    if "train" in accepted:
        options["train"] = train
    elif "split" in accepted:
        options["split"] = config.train_split if train else config.test_split
    else:
        raise ConfigError(
            f"{where} name {name!r} has no training and test split: write its images to class "
            "folders and give train and test"
        )
    if "download" in accepted:
        options["download"] = config.download
    try:
        return cls(**options)
    except ValueError as exc:  # an unknown split
        raise ConfigError(f"{where} cannot open {name}: {exc}") from None
    except ImportError as exc:
        raise MissingDependencyError(f"{name} needs another package: {exc}") from None
    except (OSError, RuntimeError) as exc:
        reason = str(exc).split("\n")[0]
        raise DataError(
            f"{name} is not in {config.root} ({reason}): correct {where} root, or set download = "
            "true"
        ) from None


def _torchvision_labels(dataset: Any) -> list[int]:
    """The labels without decoding an image, where the data set keeps them."""
    for attribute in ("targets", "_labels", "labels"):
        values = getattr(dataset, attribute, None)
        if values is not None and len(values) == len(dataset):
            return [int(value) for value in values]
    samples = getattr(dataset, "_samples", None)
    if samples is not None and len(samples) == len(dataset):
        return [int(label) for _, label in samples]
    return [int(dataset[index][1]) for index in range(len(dataset))]


def _class_name(value: Any) -> str:
    """torchvision names a few classes by a tuple of synonyms."""
    return str(value[0] if isinstance(value, (tuple, list)) else value)


def open_huggingface(config: DomainConfig, *, train: bool) -> tuple[tuple[str, ...], ImageSet]:
    """The class names and images of one split of a Hugging Face data set (hub id or folder).

    Raises MissingDependencyError without `datasets`, DataError if the set cannot be fetched or
    has no image and class columns.
    """
    try:
        import datasets
    except ImportError:
        raise MissingDependencyError(
            f"[domains.{config.name}] reads a Hugging Face data set, and the package datasets is "
            "not installed: pip install 'prunion[huggingface]'"
        ) from None
    split = config.train_split if train else config.test_split
    try:
        dataset = datasets.load_dataset(config.dataset, split=split)
    except Exception as exc:  # the hub client raises many kinds, most of them not its own
        reason = str(exc).split("\n")[0]
        raise DataError(
            f"[domains.{config.name}] cannot load {config.dataset}, split {split} ({reason}): "
            "correct the name or the split, or check the network"
        ) from None
    image, label = _columns(dataset, config)
    classes = tuple(map(str, dataset.features[label].names))
    labels = np.asarray(dataset[label], np.int64)
    encoded = dataset.cast_column(image, datasets.Image(decode=False))

    def read(index: int) -> Any:
        cell = encoded[index][image]
        data = cell["bytes"] if cell["bytes"] is not None else Path(cell["path"])
        return decode_image(data, f"{config.dataset}, split {split}, row {index}")

    return classes, ImageSet(labels, read, digest_of(labels))


def _columns(dataset: Any, config: DomainConfig) -> tuple[str, str]:
    """The image column and the class column, `label` if there are several."""
    kinds = {name: type(feature).__name__ for name, feature in dataset.features.items()}
    images = [name for name, kind in kinds.items() if kind == "Image"]
    labels = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    if "label" in labels:
        labels = ["label"]
    if not images or len(labels) != 1:
        raise DataError(
            f"[domains.{config.name}] {config.dataset} has {len(images)} image and {len(labels)} "
            f"class columns among {', '.join(kinds)}: use a set with an image and one class "
            "column, or write it to Parquet as 'image' and 'label'"
        )
    return images[0], labels[0]
