"""What a folder is by what lies in it: a class, a domain's part, a domain."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from prunion.runtime.images import (
    IMAGE_SUFFIXES,
    SPLIT_WORDS,
    SYSTEM_FOLDERS,
    TABLE_SUFFIXES,
)

__all__ = [
    "SHARDS",
    "TESTS",
    "TRAIN",
    "are_parts",
    "holds_classes",
    "holds_deeper",
    "holds_images",
    "holds_shards",
    "inner_folders",
    "is_named",
    "is_part",
    "named_by_hand",
    "part_name",
    "parts_of",
]

# The words that shards are read by; of two sets to test on the likeliest comes first, and the other
# is to watch the run on.
TRAIN, TESTS = (
    tuple(word for kind in kinds for word, of in SPLIT_WORDS.items() if of == kind)
    for kinds in (("train",), ("test", "validation"))
)
SHARDS = (".parquet", ".tar")


def parts_of(folder: Path) -> dict[str, Path]:
    """The parts of a domain by their keys, if one is for training."""
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    train, tests = (
        [x for name in names for x in inside if part_name(x) == name and is_part(x)]
        for names in (TRAIN, TESTS)
    )
    if not train:
        return {}
    # The first is to test on; what lies beside it is to watch the run on, not to be left out.
    return {"train": train[0], **dict(zip(("test", "validation"), tests, strict=False))}


def part_name(path: Path) -> str:
    """What a part is called: `Train_Images` and `train.tar` are `train`."""
    name = path.name.casefold()
    name = next((name.removesuffix(kind) for kind in SHARDS if name.endswith(kind)), name)
    return re.sub(r"[ _-](images|set|data)$", "", name)


def is_named(path: Path, parts: tuple[str, ...]) -> bool:
    """Whether a folder, or a file that may hold images or name them, is called like a part."""
    if path.is_file() and path.suffix.lower() not in (*SHARDS, *TABLE_SUFFIXES, ".zip"):
        return False
    return (part_name(path.with_suffix("")) if path.is_file() else part_name(path)) in parts


def is_part(path: Path) -> bool:
    if path.is_file():
        return path.suffix.lower() in SHARDS
    if holds_classes(path) or holds_shards(path):
        return True
    # What has no parts itself has classes, as its name says, whose images may lie deeper.
    return not parts_of(path) and holds_deeper(path)


def are_parts(folders: Sequence[Path]) -> bool:
    """Whether folders of images are parts of a set, without classes: called `train` and `test`.

    A table names such images; as classes they would be told apart by the part that they are in.
    """
    kinds = [next((kind for kind in (TRAIN, TESTS) if part_name(x) in kind), ()) for x in folders]
    return all(kinds) and len(set(kinds)) > 1


def named_by_hand(folder: Path) -> str:
    """What to write in a run file of a folder without class folders; "" where nothing is known.

    The layouts of Hugging Face (shards in `data/`, or what `save_to_disk` wrote) and tables.
    """
    try:
        if any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
            return f'; in a run file it is source = "huggingface", name = "{folder.as_posix()}"'
        inside = [folder, *inner_folders(folder)]
        files = [x for place in inside for x in sorted(place.iterdir()) if x.is_file()]
    except OSError:  # what cannot be read is told elsewhere
        return ""
    named = [x for x in files if x.suffix.lower() in (*SHARDS, *TABLE_SUFFIXES)]
    if not named:
        return ""
    first = next((x for x in named if "train" in x.name.casefold()), named[0])
    pattern = re.sub(r"-\d+-of-\d+(?=\.)", "-*", first.name)
    return f'; in a run file it is train = "{first.with_name(pattern).as_posix()}"'


def holds_classes(folder: Path) -> bool:
    return any(holds_images(inner) for inner in inner_folders(folder))


def holds_deeper(folder: Path) -> bool:
    """Whether there are images anywhere below its class folders."""
    below = (Path(inner) for x in inner_folders(folder) for inner, _, _ in os.walk(x))
    return any(map(holds_images, below))


def holds_shards(folder: Path) -> bool:
    return folder.is_dir() and any(x.suffix.lower() in SHARDS for x in folder.iterdir())


def holds_images(folder: Path) -> bool:
    return any(x.suffix.lower() in IMAGE_SUFFIXES for x in folder.iterdir())


def inner_folders(folder: Path) -> list[Path]:
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    return [
        x
        for x in inside
        if x.is_dir() and not x.name.startswith(".") and x.name.lower() not in SYSTEM_FOLDERS
    ]
