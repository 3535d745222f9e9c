"""The Visual Decathlon as it is given away: annotations, tars of images, what a submission is.

Rebuffi, Bilen and Vedaldi 2017, "Learning multiple visual domains with residual adapters",
arXiv:1705.08045; https://www.robots.ox.ac.uk/~vgg/decathlon/. The development kit has
`annotations/DOMAIN_{train,val,test_stripped}.json` in COCO's layout, the data a tar for each
domain, ImageNet's apart. Labels are those of the annotations: the order of folders is another.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from prunion.benchmarks.reproduce.archives.annotations import KIT, Listing, read_annotations
from prunion.benchmarks.reproduce.archives.images import (
    BenchmarkImages,
    Picture,
    by_turns,
    listing_digest,
    write_table,
)
from prunion.benchmarks.reproduce.archives.unpack import tars_in, unpack
from prunion.runtime.base import write_json
from prunion.runtime.errors import DataError

__all__ = ["DECATHLON_SOURCE", "MEAN_STD", "open_decathlon", "write_submission"]

DECATHLON_SOURCE = "imagenet12"  # the domain that trunks are pretrained on
PLAIN = ("dtd", "gtsrb", "omniglot", "svhn")  # neither mirrored nor cropped
MOST_IMAGE = 64 << 20  # bytes

# Mean and standard deviation of each domain's RGB, as in the benchmark's decathlon_mean_std.pickle
# (which is not read: a pickle runs code).
MEAN_STD: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "aircraft": ((0.4798, 0.5107, 0.5344), (0.2107, 0.2051, 0.2373)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "daimlerpedcls": ((0.482, 0.482, 0.482), (0.2361, 0.2361, 0.2361)),
    "dtd": ((0.527, 0.4703, 0.424), (0.2523, 0.2409, 0.2499)),
    "gtsrb": ((0.3392, 0.3118, 0.3205), (0.2756, 0.2658, 0.2709)),
    "imagenet12": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "omniglot": ((0.081, 0.081, 0.081), (0.2705, 0.2705, 0.2705)),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.198, 0.201, 0.197)),
    "ucf101": ((0.4995, 0.4988, 0.4998), (0.109, 0.1081, 0.1068)),
    "vgg-flowers": ((0.4341, 0.3831, 0.2971), (0.2851, 0.2384, 0.264)),
}

log = logging.getLogger(__name__)


def open_decathlon(data: Path, work: Path, limit: int = 0) -> list[BenchmarkImages]:
    """The domains that the archives or folders in `data` hold, in the benchmark's order.

    Args:
        data: has the kit and the data, as archives or unpacked, in `decathlon-1.0/` or not.
        work: where images are unpacked to, and tables written.
        limit: at most so many images of each part, and the classes that these show.

    Raises DataError, naming the file, for what is missing or damaged; InputError where `work` was
    unpacked from other archives.
    """
    listings = read_annotations(data, work)
    chosen = {name: _chosen(own, limit) for name, own in listings.items()}
    places = _place_images(data, work, chosen)
    domains = [
        _domain(name, {part: parts[part] for part in parts}, listings[name], places, work, limit)
        for name, parts in chosen.items()
        if _is_there(name, parts, places, data)
    ]
    if not domains:
        raise DataError(
            f"{data} holds annotations, but no images: put decathlon-1.0-data.tar.gz or the "
            "domains' tars there"
        )
    return domains


def write_submission(
    path: Path, answers: Mapping[str, Sequence[str]], domains: Iterable[BenchmarkImages]
) -> int:
    """Write the file that the benchmark's server takes: `[{"image_id", "category_id"}, …]`.

    Args:
        answers: by domain the class of each of its unlabelled images, in their order.

    Returns:
        How many images it answers for.
    """
    rows = [
        {"image_id": picture.number, "category_id": domain.categories[answer]}
        for domain in domains
        for picture, answer in zip(
            domain.unlabelled, answers.get(domain.name, ()), strict=domain.name in answers
        )
    ]
    write_json(path, rows)
    return len(rows)


def _told_apart(classes: Mapping[int, str]) -> dict[int, str]:
    """Names by number; classes of one name get their number with it."""
    names = list(classes.values())
    twice = (
        {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else ()
    )
    return {key: f"{name} ({key})" if name in twice else name for key, name in classes.items()}


def _chosen(listings: Mapping[str, Listing], limit: int) -> dict[str, list[Picture]]:
    """The images of each part that are used, their paths as the annotations have them."""
    parts: dict[str, list[Picture]] = {}
    names = _told_apart(listings["train"].classes)
    for part, listing in listings.items():
        parts[part] = [
            Picture(number, Path(path), names[listing.labels[number]] if listing.labels else "")
            for number, path in listing.images
        ]
    if limit:
        parts["train"] = by_turns(parts["train"], limit)
        known = {picture.label for picture in parts["train"]} | {""}
        for part in parts:
            parts[part] = by_turns([x for x in parts[part] if x.label in known], limit)
    return parts


def _place_images(
    data: Path, work: Path, chosen: Mapping[str, Mapping[str, list[Picture]]]
) -> dict[str, Path]:
    """The folder that has each domain's `DOMAIN/` once its tars are unpacked."""
    roots = [x for x in (data, data / "decathlon-1.0") if x.is_dir()]
    folders = [x for root in roots for x in (root, root / "data") if x.is_dir()]
    pictures = {name: [x for own in parts.values() for x in own] for name, parts in chosen.items()}
    # A folder that holds none of them is what an archive was to be unpacked to.
    places = {
        name: folder
        for name, own in pictures.items()
        for folder in folders[::-1]
        if (folder / name).is_dir() and any(_file(folder, x).is_file() for x in own)
    }
    wanted = {
        str(picture.path).removeprefix("data/"): work / picture.path
        for name, own in pictures.items()
        if name not in places
        for picture in own
    }
    tars = [x for folder in folders for x in tars_in(folder) if KIT not in x.name]
    # The small ones first: a domain's own tar is read before the one of all.
    tars.sort(key=lambda x: x.suffix.lower() != ".tar")
    if wanted:
        unpack(tars, wanted, MOST_IMAGE, suffix=True, record=work / "archives.json")
    return {name: places.get(name, work / "data") for name in chosen}


def _file(folder: Path, picture: Picture) -> Path:
    """Where a picture lies, that the annotations have below `data/`: so its domain's tar has it."""
    return folder / picture.path.relative_to("data")


def _is_there(
    name: str, parts: Mapping[str, list[Picture]], places: Mapping[str, Path], data: Path
) -> bool:
    """Whether a domain's images were found. Raises DataError where only some were."""
    pictures = [picture for own in parts.values() for picture in own]
    missing = [x.path for x in pictures if not _file(places[name], x).is_file()]
    if len(missing) == len(pictures):
        log.warning("%s: no images in %s, left out", name, data)
        return False
    if missing:
        raise DataError(
            f"{len(missing):,} of {len(pictures):,} images of {name} are missing in {data}, such "
            f"as {missing[0]}: download its tar again"
        )
    return True


def _domain(
    name: str,
    parts: Mapping[str, list[Picture]],
    listings: Mapping[str, Listing],
    places: Mapping[str, Path],
    work: Path,
    limit: int,
) -> BenchmarkImages:
    trial = f".n{limit}" if limit else ""  # a run of all images may read its tables meanwhile
    placed = {
        part: [x._replace(path=_file(places[name], x)) for x in own] for part, own in parts.items()
    }
    tables = {
        part: (write_table(work / "tables" / f"{name}.{part}{trial}.jsonl", own),)
        for part, own in placed.items()
        if part != "test_stripped" and (own or part != "test")
    }
    if not placed["test_stripped"]:
        log.warning("%s: no unlabelled test images, so no submission has it", name)
    return BenchmarkImages(
        name,
        train=tables["train"],
        val=tables["val"],
        test=tables.get("test", ()),
        unlabelled=tuple(placed["test_stripped"]),
        truth={x.number: x.label for x in placed.get("test", ())},
        categories={x: key for key, x in _told_apart(listings["train"].classes).items()},
        mirror=name not in PLAIN,
        crop=name not in PLAIN,
        mean=MEAN_STD[name][0],
        std=MEAN_STD[name][1],
        listing={part: listing_digest(own, places[name], "data") for part, own in placed.items()},
    )
