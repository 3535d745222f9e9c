"""A benchmark's images of one domain, as a run file would name them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from prunion.runtime.base import replace_file
from prunion.runtime.images import digest_of
from prunion.trainer.config import DomainConfig

__all__ = [
    "BenchmarkImages",
    "Picture",
    "by_turns",
    "domain_config",
    "listing_digest",
    "listing_of",
    "write_table",
]


class Picture(NamedTuple):
    """One image: its number in the benchmark, its file, its class by name ("" if not told)."""

    number: int
    path: Path
    label: str


@dataclass(frozen=True)
class BenchmarkImages:
    """What a benchmark gives for one domain.

    Attributes:
        train, val, test: labelled images as `[domains.NAME]` takes them; `test` is empty where the
            benchmark keeps those labels for itself, `val` where it has no such images.
        unlabelled: the images that a submission answers for.
        truth: the class of each of these by its number, where `test` has it too.
        categories: the benchmark's number of each class, by its name.
        mean, std: of the domain's RGB in 0 … 1; None where it is [input]'s.
        mirror, crop: how training may change them, by the papers.
        rescale: as `augment` takes it.
        listing: what tells the images of each part from others, by the part's name.
    """

    name: str
    train: tuple[str, ...]
    val: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    unlabelled: tuple[Picture, ...] = ()
    truth: Mapping[int, str] = field(default_factory=dict)
    categories: Mapping[str, int] = field(default_factory=dict)
    mirror: bool = True
    crop: bool = True
    rescale: float = 0.0
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    listing: Mapping[str, str] = field(default_factory=dict)


def domain_config(images: BenchmarkImages, *, final: bool) -> DomainConfig:
    """The domain as a run takes it.

    Args:
        final: train on training and validation images, and measure on test images, where there are
            labels; else on validation images, which then say nothing. Without it test images are
            for benchmarks that have no others to measure on.
    """
    train = (*images.train, *images.val) if final else images.train
    measured = (images.test or images.val) if final else (images.val or images.test)
    return DomainConfig(
        images.name,
        train=train,
        test=measured,
        mirror=images.mirror,
        crop=images.crop,
        mean=images.mean,
        std=images.std,
        augment={"rescale": images.rescale} if images.rescale else None,  # type: ignore[arg-type]
    )


def by_turns(pictures: Sequence[Picture], most: int) -> list[Picture]:
    """At most so many, one of each class after the other; 0 for all of them."""
    if not most or len(pictures) <= most:
        return list(pictures)
    classes: dict[str, list[Picture]] = defaultdict(list)
    for picture in pictures:
        classes[picture.label].append(picture)
    chosen: list[Picture] = []
    for turn in range(max(map(len, classes.values()))):
        for own in classes.values():
            chosen += own[turn : turn + 1]
            if len(chosen) == most:
                return chosen
    return chosen


def listing_digest(pictures: Sequence[Picture], root: Path, called: str = "") -> str:
    """What tells images from others: each one's number, place below `root`, class and bytes.

    Args:
        called: the name of `root` in places, whatever folder it is here.
    """
    return digest_of(
        (x.number, (called / x.path.relative_to(root)).as_posix(), x.label, x.path.stat().st_size)
        for x in pictures
    )


def listing_of(images: BenchmarkImages, without: Collection[str] = ()) -> str:
    """What tells a domain's images from others, some parts left out; "" where nobody knows."""
    used = sorted(x for x in images.listing.items() if x[0] not in without)
    return digest_of(used) if used else ""


def write_table(path: Path, pictures: Sequence[Picture]) -> str:
    """Write the images' files and classes as a table that `[domains.NAME]` reads; its path.

    One that is there already is left alone: another process may be reading it.
    """
    rows = [{"image": str(x.path.absolute()), "label": x.label} for x in pictures]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if not path.is_file() or path.read_text("utf-8") != text:
        with replace_file(path) as temporary:
            temporary.write_text(text, "utf-8")
    return str(path)
