"""Domains opened: each one's classes, training images and test images."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from prunion.runtime.base import Orientation
from prunion.runtime.errors import ConfigError, DataError, PrunionError
from prunion.runtime.images import ImageSet, Split, has_columns, image_files, open_images
from prunion.trainer.config import DomainConfig
from prunion.trainer.data.classes import number_classes
from prunion.trainer.data.remarks import remarks_between, remarks_of
from prunion.trainer.data.sources import (
    PARTS,
    Handed,
    HandedSets,
    Part,
    open_dataset,
    open_huggingface,
    open_torchvision,
)
from prunion.trainer.data.subsets import held_out, limited
from prunion.trainer.processes import ALONE, Processes

__all__ = ["Domain", "ImageSet", "domain_key", "kinds_line", "open_domain", "open_domains"]

log = logging.getLogger(__name__)

# A batch holds at least four images of a domain, so that BatchNorm has something to average.
MIN_TRAIN_IMAGES = 4
TEST, LIMIT, VALIDATION = 1, 2, 5  # keep the draws of images apart, from those of `stream` too
MOST_KINDS = 8  # of files that are passed over, in the line of a domain


@dataclass(frozen=True, eq=False)
class Domain:
    """One classification data set: a label is a position in `classes`.

    Attributes:
        validation: images for accuracy while the run learns; None where none were set aside.
        found: what opening it met, as plain JSON values: how many classes and images, which files
            were passed over, which images are not taken as they are stored, and remarks.
    """

    name: str
    classes: tuple[str, ...]
    train: ImageSet
    test: ImageSet
    mirror: bool
    crop: bool
    found: Mapping[str, Any] = field(default_factory=dict)
    validation: ImageSet | None = None

    @property
    def watched(self) -> ImageSet:
        """What accuracy is measured on before the end: validation images, else test images."""
        return self.test if self.validation is None else self.validation


def open_domain(
    config: DomainConfig,
    seed: int,
    orientation: Orientation = "exif",
    handed: Handed | None = None,
) -> Domain:
    """Open a domain's images; `seed` chooses what holdouts and `limit` leave.

    The images are checked, so that a broken one is named now. `orientation` is the run's; `handed`
    are the data sets of `source = "python"`.

    Raises DataError if they cannot be read or their classes are not plain, ConfigError if an option
    does not fit them.
    """
    _check_unused(config, handed)
    splits = {"train": _open(config, "train", orientation, handed)}
    if not config.holdout:
        splits["test"] = _open(config, "test", orientation, handed)
    in_hand = handed is not None and len(handed) > 2
    if config.validation or config.validation_split or in_hand:
        splits["validation"] = _open(config, "validation", orientation, handed)
    numbered = number_classes(config, splits["train"], splits.get("test"), splits.get("validation"))
    classes, train, test = numbered.classes, numbered.train, numbered.test
    validation = numbered.validation
    if test is None:
        train, test = held_out(train, config.holdout, [seed, domain_key(config.name), TEST])
    if config.validation_holdout:
        random = [seed, domain_key(config.name), VALIDATION]
        train, validation = held_out(train, config.validation_holdout, random)
    _check_counts(config, train, test, validation)
    if config.limit and config.limit < len(train):
        if config.limit < max(MIN_TRAIN_IMAGES, len(classes)):
            few = config.limit < len(classes)
            than = f"its {len(classes)} classes" if few else f"{MIN_TRAIN_IMAGES} images"
            raise ConfigError(
                f"[domains.{config.name}] limit is {config.limit}, fewer than {than}: raise it"
            )
        train = limited(train, config.limit, [seed, domain_key(config.name), LIMIT])
    sets = {"train": train, "validation": validation, "test": test}
    found = {
        "classes": len(classes),
        "images": {part: len(images) for part, images in sets.items() if images is not None},
        "skipped": {part: dict(split.skipped) for part, split in splits.items()},
        "changed": {part: dict(split.met) for part, split in splits.items()},
        "remarks": [*numbered.remarks, *remarks_of(classes, sets)],
    }
    return Domain(config.name, classes, train, test, config.mirror, config.crop, found, validation)


def open_domains(
    configs: Sequence[DomainConfig],
    seed: int,
    processes: Processes = ALONE,
    orientation: Orientation = "exif",
    handed: HandedSets | None = None,
) -> list[Domain]:
    """Open the domains that this process reads; of the others it learns classes and counts.

    What was found is logged, one line a domain, and what is odd about its classes. Raises what
    `open_domain` raises; DataError with the same words in the other processes.
    """
    own: dict[int, Domain] = {}
    facts: dict[str, object] = {}
    broken: PrunionError | None = None
    try:
        for index, config in enumerate(configs):
            if not processes.reads(index):
                continue
            sets_in_hand = (handed or {}).get(config.name)
            own[index] = domain = open_domain(config, seed, orientation, sets_in_hand)
            if processes.owns(index):
                _log_found(domain)
            sets = [(len(x), x.digest) for x in _sets(domain)]
            facts[str(index)] = {"classes": domain.classes, "sets": sets, "found": domain.found}
        by_name = {x.name: x for x in own.values()}
        trains = {name: x.train for name, x in by_name.items()}
        for name, remark in remarks_between(trains, {n: x.test for n, x in by_name.items()}):
            by_name[name].found["remarks"].append(remark)
            log.warning("domain %s: %s", name, remark)
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


def _check_unused(config: DomainConfig, handed: Handed | None) -> None:
    """Raise ConfigError for data sets that a program hands over and a holdout takes the place of.

    Images that nobody looks at would be missed only when it is too late.
    """
    given = handed or ()
    for place, (part, key) in enumerate(
        (("test", "holdout"), ("validation", "validation_holdout")), start=1
    ):
        share = getattr(config, key)
        if share and len(given) > place and given[place] is not None:
            raise ConfigError(
                f"[domains.{config.name}] {key} is {share}, and {part} images are handed over too: "
                "leave one out"
            )


def _open(
    config: DomainConfig, part: Part, orientation: Orientation, handed: Handed | None
) -> Split:
    if config.source == "python":
        if handed is None:
            raise DataError(
                f'[domains.{config.name}] source is "python", so a program must hand its images '
                "over: train with prunion.train(…, datasets={…}); other commands cannot read them"
            )
        return open_dataset(config.name, handed[PARTS.index(part)], part, orientation)
    if config.source == "torchvision":
        return open_torchvision(config, part, orientation)
    if config.source == "huggingface":
        return open_huggingface(config, part, orientation)
    beside = Counter[str]()
    files = image_files([Path(path) for path in getattr(config, part)], beside)
    where = f"[domains.{config.name}]"
    for key in ("image_column", "label_column"):
        if getattr(config, key) and files[0].is_dir() and not _any_columns(config):
            raise ConfigError(
                f"{where} {key} is for Parquet, tables and tars, but {part} is a folder: remove it"
            )
    columns = (config.image_column or "image", config.label_column or "label")
    split = open_images(files, columns, orientation)
    if split is not None:
        return replace(split, skipped=beside + Counter(split.skipped))
    if len(files) > 1 and files[0].is_dir():
        raise DataError(
            f"{where} {part} is {len(files)} folders, such as {files[0]}: give one folder of class "
            "folders (links to those of the others will do)"
        )
    if files[0].exists():
        raise DataError(
            f"{where} {part} is {files[0]}: give a folder of class folders or .parquet or .tar "
            "files, or tables that name images (.csv, .tsv, .jsonl)"
        )
    raise DataError(f"{where} {part} is {files[0]}, which does not exist: correct the path")


def _any_columns(config: DomainConfig) -> bool:
    """Whether a part of the domain has columns: one may be class folders, another a table."""
    parts = (getattr(config, part) for part in PARTS)
    return any(has_columns(image_files([Path(x) for x in paths])) for paths in parts if paths)


def _sets(domain: Domain) -> list[ImageSet]:
    """Training, test and, where there are some, validation images."""
    last = [] if domain.validation is None else [domain.validation]
    return [domain.train, domain.test, *last]


def _check_counts(
    config: DomainConfig, train: ImageSet, test: ImageSet, validation: ImageSet | None
) -> None:
    where = f"[domains.{config.name}]"
    if len(train) < MIN_TRAIN_IMAGES:
        raise DataError(
            f"{where} has {len(train)} training images: give {MIN_TRAIN_IMAGES} or more, one of a "
            "class is enough"
        )
    if not len(test) and config.holdout:
        raise DataError(
            f"{where} has no test images: holdout leaves each class one to learn, and none has a "
            "second; give test images, or more of a class (copies of one are one)"
        )
    if not len(test):
        raise DataError(f"{where} has no test images: give some, or holdout = 0.2 in their place")
    if validation is not None and not len(validation):
        raise DataError(
            f"{where} has no validation images: give some, more training images of a class, or "
            "leave validation and validation_holdout out"
        )


def kinds_line(counts: Mapping[str, int], most: int) -> str:
    """How many images there are of the `most` frequent kinds, and of all others; "" of none."""
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    told = [f"{count:,} {kind}" for kind, count in ordered[:most]]
    if rest := sum(count for _, count in ordered[most:]):
        told.append(f"{rest:,} others")
    return ", ".join(told)


def _log_found(domain: Domain) -> None:
    """One line of what there is, then one for each remark."""
    found, images = domain.found, domain.found["images"]
    parts = [
        f"domain {domain.name}: {found['classes']:,} classes, {images['train']:,} training"
        + (f", {images['validation']:,} validation" if "validation" in images else "")
        + f" and {images['test']:,} test images"
    ]
    for title, key in (("skipped", "skipped"), ("", "changed")):
        for part, counts in found[key].items():
            if told := kinds_line(counts, MOST_KINDS):
                parts.append(f"{title} in {part}: {told}".strip())
    log.info("; ".join(parts))
    for remark in found["remarks"]:
        log.warning("domain %s: %s", domain.name, remark)


def _elsewhere(config: DomainConfig, fact: dict[str, Any]) -> Domain:
    """A domain whose images another process reads, from what that process told about it."""
    train, test, *others = (
        ImageSet(np.zeros(count, np.int64), _unread, digest) for count, digest in fact["sets"]
    )
    classes, found = tuple(fact["classes"]), fact["found"]
    validation = others[0] if others else None
    return Domain(config.name, classes, train, test, config.mirror, config.crop, found, validation)


def _unread(index: int) -> Image.Image:
    raise ValueError("the images of this domain are read by another process")
