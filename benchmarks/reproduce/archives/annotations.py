"""The Visual Decathlon's annotation files: COCO's layout, one for each part of a domain.

Whose they are is not known, so that they are checked: each by itself, and a domain's against each
other.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunion.benchmarks.reproduce.archives.unpack import tars_in, unpack
from prunion.runtime.base import parse_json, safe_relative_path, shown
from prunion.runtime.errors import DataError
from prunion.trainer.score import DECATHLON

__all__ = ["KIT", "Listing", "read_annotations"]

KIT = "devkit"  # in the name of the kit's archive
MOST_JSON = 1 << 30  # bytes; ImageNet's annotations have 0.3 GB
SPLITS = ("train", "val", "test_stripped", "test")  # the last is none of the kit's: labels_test.zip

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listing:
    """One annotation file: image's number and path, class by image's number, name by class."""

    file: Path
    images: list[tuple[int, str]]
    labels: dict[int, int]
    classes: dict[int, str]


def read_annotations(data: Path, work: Path) -> dict[str, dict[str, Listing]]:
    """Every domain's annotation files by split, of the domains that have any.

    Args:
        data: has the kit, as an archive or unpacked, in `decathlon-1.0/` or not; labels of test
            images, which are none of the kit's, are found in `annotations/` beside either.
        work: where it is unpacked to.

    Raises DataError, naming the file, for what is missing, damaged or contradicts another file;
    InputError where `work` was unpacked from another kit.
    """
    unpacked = (data, data / "decathlon-1.0")
    folder = next((x for x in unpacked if any((x / "annotations").glob("*_train.json"))), work)
    if folder == work:
        kits = [x for x in tars_in(data) if KIT in x.name] if data.is_dir() else []
        if not kits:
            raise DataError(
                f"{data} holds neither annotations/ nor decathlon-1.0-devkit.tar.gz: put the "
                "benchmark's development kit there"
            )
        names = [
            f"annotations/{d.name}_{split}.json" for d in DECATHLON.domains for split in SPLITS
        ]
        wanted = {name: work / name for name in names}
        unpack(kits, wanted, MOST_JSON, suffix=True, record=work / "kit.json")
    found: dict[str, dict[str, Listing]] = {}
    lacking: list[str] = []
    for domain in DECATHLON.domains:
        files = {x: folder / "annotations" / f"{domain.name}_{x}.json" for x in SPLITS}
        if not files["train"].is_file():
            lacking.append(domain.name)
            continue
        if not files["test"].is_file():  # they come apart from the kit, which may not be unpacked
            places = [x / "annotations" / files["test"].name for x in unpacked]
            files["test"] = next((x for x in places if x.is_file()), files["test"])
        for split in ("val", "test_stripped"):
            if not files[split].is_file():
                raise DataError(f"{files[split]} is missing: copy the whole development kit")
        found[domain.name] = {
            x: _listing(file, domain.name, labelled=x != "test_stripped")
            for x, file in files.items()
            if file.is_file()
        }
        for split in ("train", "val"):
            if not found[domain.name][split].images:
                raise DataError(f"{files[split]} has no images: copy the development kit again")
        _check_agreement(found[domain.name])
    if not found:
        raise DataError(f"{folder}/annotations holds no DOMAIN_train.json of the Decathlon's")
    if lacking:
        log.warning("%s: no annotations in %s, left out", ", ".join(lacking), folder)
    return found


def _listing(file: Path, domain: str, *, labelled: bool) -> Listing:
    if file.stat().st_size > MOST_JSON:
        raise DataError(f"{file} is larger than {MOST_JSON >> 30} GiB: no annotations")
    value = parse_json(file.read_bytes(), file, DataError)
    try:
        images = [(_number(x["id"]), x["file_name"]) for x in value["images"]]
        named = [(_number(x["id"]), str(x["name"])) for x in value.get("categories", [])]
        given = value["annotations"] if labelled else []
        labels = {_number(x["image_id"]): _number(x["category_id"]) for x in given}
    except (KeyError, TypeError, AttributeError, ValueError) as exc:
        raise DataError(
            f"{file} is no annotation file of the Decathlon ({type(exc).__name__}: {exc}): copy "
            "the development kit again"
        ) from None
    for _, name in images:
        if not safe_relative_path(name) or not name.startswith(f"data/{domain}/"):
            raise DataError(
                f"{file} names the image {shown(name)}, which is not in data/{domain}/: copy the "
                "development kit again"
            )
    numbers, classes = {number for number, _ in images}, dict(named)
    wrong = "two images have one id" if len(numbers) < len(images) else ""
    if len(classes) < len(named):
        wrong = "two categories have one id"
    if labelled and (numbers != labels.keys() or len(given) > len(labels)):
        wrong = "its images and annotations do not pair"
    if labelled and not classes.keys() >= set(labels.values()):
        wrong = "an annotation has a category that is not in its list"
    if wrong:
        raise DataError(f"{file}: {wrong}: copy the development kit again")
    return Listing(file, images, labels, classes)


def _check_agreement(listings: Mapping[str, Listing]) -> None:
    """A domain's files must mean the same by a category's number, and by an image's.

    An answer is the number of a category in the training file, and is right or wrong by another
    file: where the two differ it would count as wrong, or a class be learned as another.
    """
    train = listings["train"]
    for listing in listings.values():
        for number, name in listing.classes.items():
            if train.classes.get(number) != name:
                known = shown(train.classes[number]) if number in train.classes else "nothing"
                raise DataError(
                    f"{listing.file} calls category {number} {shown(name)}, and {train.file} calls "
                    f"it {known}: copy both out of one development kit"
                )
    asked, told = listings["test_stripped"], listings.get("test")
    if told and told.images and set(told.images) != set(asked.images):
        other = next(iter(set(told.images) ^ set(asked.images)))
        raise DataError(
            f"{told.file} and {asked.file} are of different images, such as {other[0]} "
            f"{shown(other[1])}: put the labels of that file's images there, or remove the first"
        )


def _number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{shown(value)} is no whole number")
    return value
