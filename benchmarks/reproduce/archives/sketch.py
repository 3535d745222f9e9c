"""ImageNet-to-Sketch as it is given away: a folder of class folders for each part of a domain.

Mallya, Davis and Lazebnik 2018, "Piggyback: adapting a single network to multiple tasks by learning
to mask weights", arXiv:1801.06519. Birds and cars are cropped to their boxes beforehand and only
mirrored; of the others training sees any part of an image, resized.
"""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

from prunion.benchmarks.reproduce.archives.images import (
    BenchmarkImages,
    Picture,
    by_turns,
    listing_digest,
    write_table,
)
from prunion.runtime.errors import DataError
from prunion.runtime.images import folder_images
from prunion.trainer.score import IMAGENET_TO_SKETCH

__all__ = ["SKETCH_SOURCE", "open_sketch"]

SKETCH_SOURCE = "imagenet"
FOLDERS = {
    "imagenet": ("imagenet",),
    "cubs": ("cubs", "cubs_cropped"),
    "cars": ("cars", "cars_cropped", "stanford_cars", "stanford_cars_cropped"),
    "flowers": ("flowers",),
    "wikiart": ("wikiart",),
    "sketches": ("sketches", "sketch"),
}
CROPPED = ("cubs", "cars")
SMALLEST = 0.08  # share of an image that training sees, of torchvision's RandomResizedCrop

log = logging.getLogger(__name__)


def open_sketch(data: Path, work: Path, limit: int = 0) -> list[BenchmarkImages]:
    """The domains whose folders `data` holds, in the benchmark's order.

    Args:
        work: where tables are written, of a limited number of images.
        limit: at most so many images of each part, and the classes that these show.

    Raises DataError where none is there, or a part of one is missing.
    """
    found = []
    for domain in IMAGENET_TO_SKETCH.domains:
        there = [data / x for x in FOLDERS[domain.name] if (data / x).is_dir()]
        if not there:
            log.warning("%s: no folder in %s, left out", domain.name, data)
            continue
        if len({x.resolve() for x in there}) > 1:
            named = " and ".join(x.name for x in there)
            raise DataError(f"{data} holds {named}, which are one domain: leave one of them there")
        folder = there[0]
        parts = [next((folder / x for x in names if (folder / x).is_dir()), None)
                 for names in (("train",), ("test", "val"))]  # fmt: skip
        train, test = parts
        if train is None or test is None:
            raise DataError(f"{folder} holds no train/ and test/ of class folders: put both there")
        plain, both = domain.name in CROPPED, {"train": train, "test": test}
        if domain.name == SKETCH_SOURCE:  # no row is made of its million images
            both = {}
        paths: tuple[tuple[str, ...], tuple[str, ...]] = (str(train),), (str(test),)
        if limit:
            paths = _limited(domain.name, train, test, work, limit)
        found.append(
            BenchmarkImages(
                domain.name,
                train=paths[0],
                test=paths[1],  # nothing else is measured on, so nothing here may train
                crop=not plain,
                rescale=0.0 if plain else SMALLEST,
                listing={x: listing_digest(_pictures(place), place) for x, place in both.items()},
            )
        )
    if not found:
        told = ", ".join(names[0] for names in FOLDERS.values())
        raise DataError(f"{data} holds none of the folders {told}: put the benchmark's there")
    return found


def _limited(
    name: str, train: Path, test: Path, work: Path, limit: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Tables of a few images of each part, of the same classes."""
    learned = by_turns(_pictures(train), limit)
    known = {picture.label for picture in learned}
    asked = by_turns([x for x in _pictures(test) if x.label in known], limit)
    return tuple(
        (write_table(work / "tables" / f"{name}.{part}.n{limit}.jsonl", own),)
        for part, own in (("train", learned), ("test", asked))
    )  # type: ignore[return-value]


def _pictures(folder: Path) -> list[Picture]:
    """What a run finds in the folder; a link to nowhere is its error, and not this one's."""
    found = folder_images(folder, Counter())
    return [Picture(0, x, name) for name, own in found.items() for x in own if x.is_file()]
