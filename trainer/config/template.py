"""A run file for a folder of images, with the keys that one changes first."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path

from prunion.runtime.base import reason_of, shown
from prunion.runtime.errors import DataError, printable
from prunion.runtime.images import IMAGE_SUFFIXES, SYSTEM_FOLDERS, TABLE_SUFFIXES
from prunion.trainer.config.file import toml_key, toml_text

__all__ = ["domain_parts", "foreign_to_init", "found_domains", "run_file_text"]

log = logging.getLogger(__name__)
HEAD = "# Written by `prunion init`"
SUM = "\n# Tells `prunion init --force` whether anything above was edited: "
HOLDOUT = 0.2
TRAIN = ("train", "training")
# To test on, the likeliest first: of two the other is to watch the run on.
TESTS = ("test", "testing", "val", "valid", "validation", "dev")
SHARDS = (".parquet", ".tar")
TEXT = """\
{head} for {data}: `prunion train {file}` trains it. docs/run-file.md has every key.
seed = 0

[backbone]
source = "torchvision"           # torchvision | timm | python (a function of yours)
name = "resnet18"
weights = "default"              # the library's download, "none", or a local file
# cut = "layer3"                 # keep the network up to this module

[input]
size = 64                        # pixels that the network sees: larger is slower and sees more

[budget]
kind = "params"                  # params | macs | bytes | switches | latency
limit = 0.5                      # share of the backbone's, or an amount: "1.2M"

[train]
warmup = 2                       # epochs of each phase
ramp = 4
settle = 6
batch_size = 32                  # images per domain and step
"""


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
        folders = _folders(data)
        if parts := _parts(data):
            _check_alone(data, parts, folders)
            _note_left(data, parts)
            return {_name(data.resolve().name): parts}
    except OSError as exc:
        raise DataError(f"{_unread(exc, data)}: give one that can be") from None
    found, classes, others = {}, [], []
    for folder in folders:
        try:
            is_class = _holds_images(folder)
            parts = _parts(folder)
            _note_left(folder, parts)
            parts = parts or ({} if is_class else _domain(folder))
        except OSError as exc:  # such as a disk's `lost+found`
            log.info("%s is left out: %s", folder, _unread(exc, folder))
            continue
        if parts:
            found[folder] = parts
        else:
            others.append(folder)
        if is_class:
            classes.append(folder)
    if classes and found:
        raise DataError(
            f"{classes[0]} holds images, as a class does, and {next(iter(found))} holds folders of "
            "them, as a domain does: move away the one that does not belong there"
        )
    if classes:
        return {_name(data.resolve().name): {"train": data}}
    if not found:
        raise DataError(
            f"{data} holds no images in class folders: give DATA/DOMAIN/CLASS/*.jpg, or "
            "DATA/DOMAIN/train/CLASS/*.jpg with a test folder beside; where a class's images lie "
            "deeper, name the domains in a run file by hand"
        )
    for folder in others:
        log.info("%s is left out: it holds no images in class folders", folder)
    names: dict[str, dict[str, Path]] = {}
    for folder, parts in found.items():
        names[_free(_name(folder.name), names)] = parts
    return names


def domain_parts(source: Path) -> dict[str, Path]:
    """One domain's `train`, and `test` and `validation` where there are, as `found_domains` has it.

    What has no such folders is all for training. Whether it can be read is told where it is read,
    as is a `test` that holds nothing.

    Raises DataError for a file that is called like the test images and is not read as them.
    """
    try:
        parts = _parts(source)
        _note_left(source, parts)
    except OSError:
        parts = {}
    named = {"train": source / "train", "test": source / "test"}
    if all(path.is_dir() for path in named.values()):
        parts = {**parts, **named}
    if parts and "test" not in parts:
        unread = [x for x in sorted(source.iterdir()) if x.is_file() and _is_named(x, TESTS)]
        if unread:
            raise DataError(
                f"{unread[0]} lies beside {parts['train']} and is not read for itself: move it "
                "away, or give both in a run file or as (train, test)"
            )
    return parts or {"train": source}


def run_file_text(data: Path, file: Path, domains: Mapping[str, Mapping[str, Path]]) -> str:
    """The run file's TOML, its paths relative to where it will lie.

    Raises DataError for a path that a run file cannot hold.
    """
    text = TEXT.format(head=HEAD, data=shown(str(data)), file=printable(file.name))
    for name, parts in domains.items():
        text += f"\n[{toml_key('domains', name)}]\n"
        for part, path in parts.items():
            beside = _beside(path, file)
            if printable(beside) != beside:
                raise DataError(
                    f"{shown(beside)} has control characters in its name, or is no UTF-8: rename it"
                )
            text += f"{part} = {toml_text(beside)}\n"
        if "test" not in parts:
            text += f"holdout = {HOLDOUT}                    # of the training images, to test on\n"
        text += "mirror = false                   # true where left and right mean the same\n"
    return f"{text}{SUM}{_sum(text)}\n"


def foreign_to_init(path: Path) -> str:
    """What in a file `prunion init` did not write, which `--force` must leave; "" if nothing."""
    text = path.read_bytes().decode("utf-8", "replace") if path.is_file() else ""
    if not text.startswith(HEAD):
        return "was not written by `prunion init`"
    written, _, digest = text.rpartition(SUM)
    return "" if digest.strip() == _sum(written) else "was edited since `prunion init` wrote it"


def _sum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _unread(exc: OSError, folder: Path) -> str:
    return f"{exc.filename or folder} cannot be read ({exc.strerror or reason_of(exc)})"


def _domain(folder: Path) -> dict[str, Path]:
    return {"train": folder} if _holds_classes(folder) else {}


def _parts(folder: Path) -> dict[str, Path]:
    """The parts of a domain by their keys, if one is for training."""
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    train, tests = (
        [x for name in names for x in inside if _part_name(x) == name and _is_part(x)]
        for names in (TRAIN, TESTS)
    )
    if not train:
        return {}
    # The first is to test on; what lies beside it is to watch the run on, not to be left out.
    return {"train": train[0], **dict(zip(("test", "validation"), tests, strict=False))}


def _note_left(folder: Path, parts: Mapping[str, Path]) -> None:
    """Say what of a folder of parts is none of them."""
    for path in sorted(folder.iterdir()) if parts else ():
        is_part = _is_named(path, (*TRAIN, *TESTS))
        if path in parts.values() or path.name.startswith(".") or not (path.is_dir() or is_part):
            continue
        why = "its name is no part's"
        if path.is_file() and not _is_part(path):
            why = "it is no Parquet file or shard; a run file can name a table"
        elif not _is_part(path):
            why = "it holds no images in class folders"
        elif is_part:
            why = "a domain has one part of its kind"
        log.info("%s is left out: %s", path, why)


def _check_alone(data: Path, parts: Mapping[str, Path], folders: list[Path]) -> None:
    """Raise DataError if a folder of parts holds other folders that would be domains."""
    others = [x for x in folders if _part_name(x) not in (*TRAIN, *TESTS) and _holds_deeper(x)]
    if others and len(parts) == 1:
        raise DataError(
            f"{parts['train']} is either the training images of one domain, or a domain beside "
            f"{others[0]}: rename it, or move away what does not belong there"
        )


def _part_name(path: Path) -> str:
    """What a part is called: `Train_Images` and `train.tar` are `train`."""
    name = path.name.casefold()
    name = next((name.removesuffix(kind) for kind in SHARDS if name.endswith(kind)), name)
    return re.sub(r"[ _-](images|set|data)$", "", name)


def _is_named(path: Path, parts: tuple[str, ...]) -> bool:
    """Whether a folder, or a file that may hold images or name them, is called like a part."""
    if path.is_file() and path.suffix.lower() not in (*SHARDS, *TABLE_SUFFIXES, ".zip"):
        return False
    return (_part_name(path.with_suffix("")) if path.is_file() else _part_name(path)) in parts


def _is_part(path: Path) -> bool:
    if path.is_file():
        return path.suffix.lower() in SHARDS
    if _holds_classes(path) or _holds_shards(path):
        return True
    # What has no parts itself has classes, as its name says, whose images may lie deeper.
    return not _parts(path) and _holds_deeper(path)


def _holds_classes(folder: Path) -> bool:
    return any(_holds_images(inner) for inner in _folders(folder))


def _holds_deeper(folder: Path) -> bool:
    """Whether there are images anywhere below its class folders."""
    below = (Path(inner) for x in _folders(folder) for inner, _, _ in os.walk(x))
    return any(map(_holds_images, below))


def _holds_shards(folder: Path) -> bool:
    return folder.is_dir() and any(x.suffix.lower() in SHARDS for x in folder.iterdir())


def _holds_images(folder: Path) -> bool:
    return any(x.suffix.lower() in IMAGE_SUFFIXES for x in folder.iterdir())


def _folders(folder: Path) -> list[Path]:
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    return [
        x
        for x in inside
        if x.is_dir() and not x.name.startswith(".") and x.name.lower() not in SYSTEM_FOLDERS
    ]


def _name(folder: str) -> str:
    """A domain's name for a folder's: what it may not hold becomes `_`."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", folder)[:64]
    return name if name[:1].isalnum() else f"d{name}"[:64]


def _free(name: str, taken: Mapping[str, object]) -> str:
    """The name, or with a number behind where two folders come to the same one.

    Upper and lower case do not tell domains apart, as `check_domains` has it.
    """
    known = {other.casefold() for other in taken}
    tries = (f"{name[:60]}_{number}" for number in range(2, len(taken) + 3))
    return next(x for x in (name, *tries) if x.casefold() not in known)


def _beside(path: Path, file: Path) -> str:
    whole = path.parent.resolve() / path.name  # a link's own name, as a run file has it
    try:
        return Path(os.path.relpath(whole, file.absolute().parent.resolve())).as_posix()
    except ValueError:  # on another drive
        return whole.as_posix()
