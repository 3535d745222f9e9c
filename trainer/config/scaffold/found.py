"""The domains in a folder of images."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from prunion.runtime.base import reason_of
from prunion.runtime.errors import DataError
from prunion.runtime.images import IMAGE_SUFFIXES, TABLE_SUFFIXES
from prunion.trainer.config.scaffold.layout import (
    SHARDS,
    TESTS,
    TRAIN,
    are_parts,
    holds_classes,
    holds_deeper,
    holds_images,
    holds_shards,
    inner_folders,
    is_named,
    is_part,
    named_by_hand,
    part_name,
    parts_of,
)

__all__ = ["domain_parts", "found_domains", "free_name"]

log = logging.getLogger(__name__)
NO_CLASSES = "holds no images in class folders"
FILES = (*SHARDS, *TABLE_SUFFIXES, ".zip")  # that may hold a set of images, or name them


def found_domains(data: Path) -> dict[str, dict[str, Path]]:
    """The domains in a folder: each one's `train`, and `test` and `validation` where there are.

    A domain is a folder of class folders, or one that holds such folders (or Parquet files) called
    `train` and `test` (or `val`; beside `test`, that is `validation`), in any case, also `Training`
    or `train_images`. `data` may hold several, or be one itself.

    What is left out, because it is no domain, no part of one or cannot be read, is named in a note.

    Raises DataError if it holds none, if it may be read either way, or cannot be read.
    """
    if not data.is_dir():
        raise DataError(f"{data} is no folder: give one that holds a folder for each domain")
    try:
        folders = inner_folders(data)
        if parts := parts_of(data):
            _check_alone(data, parts, folders)
            _note_left(data, parts)
            return {_name(data.resolve().name): parts}
    except OSError as exc:
        raise DataError(f"{_unread(exc, data)}: give one that can be") from None
    _note_beside(data)
    found, classes, others = _told_apart(folders)
    if classes and found:
        raise DataError(
            f"{classes[0]} holds images, as a class does, and {next(iter(found))} holds folders of "
            "them, as a domain does: move away the one that does not belong there"
        )
    if classes and not are_parts(classes):
        return {_name(data.resolve().name): {"train": data}}
    if not found:
        raise DataError(
            f"{data} {NO_CLASSES}: give DATA/DOMAIN/CLASS/*.jpg, or "
            "DATA/DOMAIN/train/CLASS/*.jpg with a test folder beside; where a class's images lie "
            f"deeper, name the domains in a run file by hand{named_by_hand(data)}"
        )
    for folder in others:
        log.info("%s is left out: it %s%s", folder, NO_CLASSES, named_by_hand(folder))
    names: dict[str, dict[str, Path]] = {}
    for folder, parts in found.items():
        names[free_name(_name(folder.name), names)] = parts
    return names


def _told_apart(
    folders: Sequence[Path],
) -> tuple[dict[Path, dict[str, Path]], list[Path], list[Path]]:
    """Domains with their parts, classes, and what is neither; what cannot be read is noted."""
    found: dict[Path, dict[str, Path]] = {}
    classes: list[Path] = []
    others: list[Path] = []
    seen: dict[Path, Path] = {}
    # A folder under its own name comes before a link to it, whatever the two are called.
    for folder in sorted(folders, key=lambda path: path.is_symlink()):
        try:
            parts, is_class = _looked_into(folder)
        except OSError as exc:  # such as a disk's `lost+found`
            log.info("%s is left out: %s", folder, _unread(exc, folder))
            continue
        if is_class:
            classes.append(folder)
        if not parts:
            others.append(folder)
        elif (other := seen.setdefault(folder.resolve(), folder)) != folder:
            log.info("%s is left out: it leads to %s, which is a domain already", folder, other)
        else:
            found[folder] = parts
    return {x: found[x] for x in folders if x in found}, classes, others


def _looked_into(folder: Path) -> tuple[dict[str, Path], bool]:
    """The parts of a domain's folder, empty for any other; and whether it is a class.

    Raises OSError if it cannot be read.
    """
    parts = parts_of(folder)
    if not parts and holds_images(folder):
        _note_classes(folder)
        return {}, True
    _note_left(folder, parts)
    return parts or _domain(folder), False


def domain_parts(source: Path) -> dict[str, Path]:
    """One domain's `train`, and `test` and `validation` where there are, as `found_domains` has it.

    What has no such folders is all for training. Whether it can be read is told where it is read,
    as is a `test` that holds nothing.

    Raises DataError for a file that is called like the test images and is not read as them.
    """
    try:
        parts = parts_of(source)
        _note_left(source, parts)
    except OSError:
        parts = {}
    named = {"train": source / "train", "test": source / "test"}
    if all(path.is_dir() for path in named.values()):
        parts = {**parts, **named}
    if parts and "test" not in parts:
        unread = [x for x in sorted(source.iterdir()) if x.is_file() and is_named(x, TESTS)]
        if unread:
            raise DataError(
                f"{unread[0]} lies beside {parts['train']} and is not read for itself: move it "
                "away, or give both in a run file or as (train, test)"
            )
    return parts or {"train": source}


def _unread(exc: OSError, folder: Path) -> str:
    return f"{exc.filename or folder} cannot be read ({exc.strerror or reason_of(exc)})"


def _domain(folder: Path) -> dict[str, Path]:
    classes = [x for x in inner_folders(folder) if holds_images(x)]
    return {"train": folder} if classes and not are_parts(classes) else {}


def _note_beside(data: Path) -> None:
    """Say which files beside folders of domains, or of classes, might be images of some too."""
    for path in sorted(data.iterdir()):
        if path.is_symlink() and not path.exists():
            log.info("%s is left out: it is a link to what is not there", path)
        elif path.is_file() and path.suffix.lower() in (*FILES, *IMAGE_SUFFIXES):
            log.info("%s is left out: it lies in no class folder; a run file can name one", path)


def _note_classes(folder: Path) -> None:
    """Say that a folder is taken for a class that has folders of images, as a domain has."""
    inner = next((x for x in inner_folders(folder) if holds_images(x)), None)
    if inner is not None:
        log.info(
            "%s is taken for a class, with what lies in %s, since images lie in it: move those "
            "away if it is a domain",
            folder,
            inner,
        )


def _note_deep(part: Path) -> None:
    """Say that the folders of a part hold folders of images, as domains do."""
    if part.is_dir() and not holds_classes(part) and not holds_shards(part):
        log.info(
            "%s is taken for folders of classes, whose images lie deeper: if those are domains, "
            "give DATA/DOMAIN/%s/CLASS",
            part,
            part.name,
        )


def _note_left(folder: Path, parts: Mapping[str, Path]) -> None:
    """Say what of a folder of parts is none of them."""
    for part in parts.values():
        _note_deep(part)
    for path in sorted(folder.iterdir()) if parts else ():
        if path in parts.values() or path.name.startswith("."):
            continue
        if why := _why_left(path):
            log.info("%s is left out: %s", path, why)


def _why_left(path: Path) -> str:
    """Why what lies beside a domain's parts is none; "" where nobody would take it for one."""
    named, suffix = is_named(path, (*TRAIN, *TESTS)), path.suffix.lower()
    if path.is_file() and not named:
        if suffix in IMAGE_SUFFIXES:
            return "it lies in no class folder"
        return "its name is no part's" if suffix in (*SHARDS, ".zip") else ""
    if path.is_file() and not is_part(path):
        return "it is no Parquet file or shard; a run file can name a table"
    if not path.exists():
        return "it is a link to what is not there"
    if not is_part(path):
        return f"it {NO_CLASSES}"
    return "a domain has one part of its kind" if named else "its name is no part's"


def _check_alone(data: Path, parts: Mapping[str, Path], folders: list[Path]) -> None:
    """Raise DataError if a folder of parts holds other folders that would be domains."""
    others = [x for x in folders if part_name(x) not in (*TRAIN, *TESTS) and holds_deeper(x)]
    if others and len(parts) == 1:
        raise DataError(
            f"{parts['train']} is either the training images of one domain, or a domain beside "
            f"{others[0]}: rename it, or move away what does not belong there"
        )


def _name(folder: str) -> str:
    """A domain's name for a folder's: what it may not hold becomes `_`."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", folder)[:64]
    return name if name[:1].isalnum() else f"d{name}"[:64]


def free_name(name: str, taken: Mapping[str, object]) -> str:
    """The name, or with a number behind where two folders come to the same one.

    Upper and lower case do not tell domains apart, as `check_domains` has it.
    """
    known = {other.casefold() for other in taken}
    tries = (f"{name[:60]}_{number}" for number in range(2, len(taken) + 3))
    return next(x for x in (name, *tries) if x.casefold() not in known)
