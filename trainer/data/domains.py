"""Domains opened: each one's classes, training images and test images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from prunion.runtime.base import check_text, shown
from prunion.runtime.errors import ConfigError, DataError, PrunionError
from prunion.trainer.config import DomainConfig
from prunion.trainer.data.folder import open_folder
from prunion.trainer.data.image_set import ImageSet
from prunion.trainer.data.named import open_huggingface, open_torchvision
from prunion.trainer.data.parquet import open_parquet
from prunion.trainer.processes import ALONE, Processes

__all__ = ["Domain", "ImageSet", "domain_key", "open_domain", "open_domains"]

# A batch holds at least four images of a domain, so that BatchNorm has something to average.
MIN_TRAIN_IMAGES = 4


@dataclass(frozen=True, eq=False)
class Domain:
    """One classification data set: a label is a position in `classes`."""

    name: str
    classes: tuple[str, ...]
    train: ImageSet
    test: ImageSet
    mirror: bool
    crop: bool


def open_domain(config: DomainConfig, seed: int) -> Domain:
    """Open a domain's images; `seed` chooses what `holdout` and `limit` leave.

    The images are checked, so that a broken one is named now. Raises DataError if they cannot
    be read or the two sets have different classes, ConfigError if an option does not fit them.
    """
    classes, train = _open(config, "train", None)
    if config.holdout:
        train, test = _held_out(train, config, seed)
    else:
        test_classes, test = _open(config, "test", classes)
        _check_same_classes(config, classes, test_classes)
    _check_classes(config, classes, train)
    if not len(test):
        raise DataError(f"[domains.{config.name}] has no test images: give some")
    if config.limit and config.limit < len(train):
        if config.limit < len(classes):
            raise ConfigError(
                f"[domains.{config.name}] limit is {config.limit}, fewer than its {len(classes)} "
                "classes: raise it, or remove it"
            )
        train = _limited(train, config, seed)
    return Domain(config.name, classes, train, test, config.mirror, config.crop)


def open_domains(
    configs: Sequence[DomainConfig], seed: int, processes: Processes = ALONE
) -> list[Domain]:
    """Open every domain that this process owns; of the others it learns classes and counts.

    Raises what `open_domain` raises; DataError with the same words in the other processes.
    """
    own: dict[int, Domain] = {}
    facts: dict[str, object] = {}
    broken: PrunionError | None = None
    try:
        for index, config in enumerate(configs):
            if processes.owns(index):
                own[index] = domain = open_domain(config, seed)
                sets = [(len(part), part.digest) for part in (domain.train, domain.test)]
                facts[str(index)] = {"classes": domain.classes, "sets": sets}
    except PrunionError as exc:
        broken, facts = exc, {"error": str(exc)}
    # A process that cannot go on says so before it leaves, or the others would wait for it.
    shared = [json.loads(text) for text in processes.share_text(json.dumps(facts))]
    for theirs in shared:
        if "error" in theirs:
            raise broken or DataError(theirs["error"])
    known = {int(index): fact for theirs in shared for index, fact in theirs.items()}
    return [own.get(i) or _elsewhere(config, known[i]) for i, config in enumerate(configs)]


def domain_key(name: str) -> int:
    """A number for random generators that depends on the name, not on the place in the file."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")


def _open(
    config: DomainConfig, part: str, classes: tuple[str, ...] | None
) -> tuple[tuple[str, ...], ImageSet]:
    if config.source == "torchvision":
        return open_torchvision(config, train=part == "train")
    if config.source == "huggingface":
        return open_huggingface(config, train=part == "train")
    paths = tuple(Path(path) for path in getattr(config, part))
    if all(path.suffix.lower() == ".parquet" and not path.is_dir() for path in paths):
        return open_parquet(paths, classes)
    if len(paths) == 1 and paths[0].is_dir():
        return open_folder(paths[0])
    where = f"[domains.{config.name}] {part}"
    if paths[0].exists():
        raise DataError(f"{where} is {paths[0]}: give a folder of class folders or .parquet files")
    raise DataError(f"{where} is {paths[0]}, which does not exist: correct the path")


def _check_classes(config: DomainConfig, classes: tuple[str, ...], train: ImageSet) -> None:
    where = f"[domains.{config.name}]"
    for name in classes:  # each is written into a JSON file at the very end

        def unfit(problem: str, name: str = name) -> DataError:
            return DataError(f"{where} class {shown(name)} {problem}: rename it")

        check_text(name, 1000, unfit)
    if len(set(classes)) != len(classes):
        twice = next(name for name in classes if classes.count(name) > 1)
        raise DataError(f"{where} has two classes named {twice!r}: rename one")
    if len(classes) < 2:
        raise DataError(f"{where} has one class, {classes[0]!r}: give at least two to tell apart")
    empty = np.flatnonzero(np.bincount(train.labels, minlength=len(classes)) == 0)
    if len(empty):
        raise DataError(
            f"{where} has no training images of class {classes[empty[0]]!r}: add some, or remove "
            "the class from the data set"
        )
    if len(train) < MIN_TRAIN_IMAGES:
        raise DataError(
            f"{where} has {len(train)} training images: give {MIN_TRAIN_IMAGES} or more"
        )


def _check_same_classes(
    config: DomainConfig, train: tuple[str, ...], test: tuple[str, ...]
) -> None:
    if train == test:
        return
    lacking = [f"train lacks {name!r}" for name in test if name not in train]
    lacking += [f"test lacks {name!r}" for name in train if name not in test]
    what = "; ".join(lacking[:4]) + ("; …" if len(lacking) > 4 else "")
    raise DataError(
        f"[domains.{config.name}] train and test have different classes "
        f"({what or 'the same names in another order'}): make them the same"
    )


def _held_out(images: ImageSet, config: DomainConfig, seed: int) -> tuple[ImageSet, ImageSet]:
    """Split off `holdout` of each class, at least one image where there are two."""
    rng = np.random.default_rng([seed, domain_key(config.name), 1])
    test: list[int] = []
    for members in _shuffled_classes(images, rng):
        if len(members) > 1:
            count = min(max(1, round(config.holdout * len(members))), len(members) - 1)
            test += members[:count].tolist()
    held = np.zeros(len(images), bool)
    held[test] = True
    return images.subset(np.flatnonzero(~held)), images.subset(np.flatnonzero(held))


def _limited(images: ImageSet, config: DomainConfig, seed: int) -> ImageSet:
    """`limit` images, as nearly equally many of each class as there are."""
    rng = np.random.default_rng([seed, domain_key(config.name), 2])
    members = _shuffled_classes(images, rng)
    turns = [(turn, label) for label, own in enumerate(members) for turn in range(len(own))]
    chosen = [members[label][turn] for turn, label in sorted(turns)[: config.limit]]
    return images.subset(np.sort(np.asarray(chosen, np.int64)))


def _shuffled_classes(images: ImageSet, rng: np.random.Generator) -> list[np.ndarray]:
    return [
        rng.permutation(np.flatnonzero(images.labels == label))
        for label in range(int(images.labels.max()) + 1)
    ]


def _elsewhere(config: DomainConfig, fact: dict) -> Domain:
    """A domain whose images another process reads, from what that process told about it."""
    train, test = (
        ImageSet(np.zeros(count, np.int64), _unread, digest) for count, digest in fact["sets"]
    )
    classes = tuple(fact["classes"])
    return Domain(config.name, classes, train, test, config.mirror, config.crop)


def _unread(index: int) -> Image.Image:
    raise ValueError("the images of this domain are read by another process")
