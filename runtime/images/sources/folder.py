"""Images in class folders: `folder/CLASS/image.jpg`."""

from __future__ import annotations

import os
import stat
from collections import Counter
from pathlib import Path

import numpy as np

from prunion.runtime.base import Orientation, install_hint, reason_of, shown
from prunion.runtime.errors import DataError
from prunion.runtime.images.decode import IMAGE_SUFFIXES, can_decode, image_kind
from prunion.runtime.images.image_check import ImageCheck, decode_image
from prunion.runtime.images.labels import Split
from prunion.runtime.images.sources.walk import entries_of, folders_below, is_within

__all__ = ["SYSTEM_FOLDERS", "folder_images", "open_folder"]

BOXED_SUFFIXES = {
    **dict.fromkeys((".avif", ".avifs"), "AVIF"),
    **dict.fromkeys((".heic", ".heif", ".heics", ".heifs", ".hif"), "HEIF"),
}
SYSTEM_FOLDERS = ("@eadir", "__macosx")  # a NAS's thumbnails, what macOS adds to an archive
BACK = "folder that a link leads back to"
SYSTEM = "folder that a system keeps beside images"
SPARE_SUFFIXES = ("~", ".bak", ".crdownload", ".part", ".tmp")


def open_folder(folder: Path, orientation: Orientation = "exif") -> Split:
    """The class names (the folders' names, sorted) and the images below each, links followed.

    What is no image is passed over and counted, by what it is. Raises DataError if there is no
    class folder, a folder cannot be opened or an image cannot be read.
    """
    skipped: Counter[str] = Counter()
    found = folder_images(folder, skipped)
    names = list(found)
    if not names:
        hidden = [kind for kind in skipped if kind.startswith("class folder")]
        raise DataError(
            f"{folder} has no class folders: put its images in one folder per class"
            + (f", whose name begins with no dot ({hidden[0]} does)" if hidden else "")
        )
    paths = [path for own in found.values() for path in own]
    labels = [name for name, own in found.items() for _ in own]
    check = ImageCheck(orientation)
    check.check(paths, list(map(str, paths)))
    prints = np.array(check.prints, np.int64)
    return Split(
        labels=labels,
        names=tuple(names),
        read=lambda index: decode_image(
            paths[index], str(paths[index]), orientation, prints[index]
        ),
        place=lambda index: str(paths[index]),
        skipped=skipped,
        met=check.met,
        empty=lambda name: (
            f"{folder / name} holds no images ({', '.join(s[1:] for s in IMAGE_SUFFIXES)})",
            "remove the folder",
        ),
        prints=prints,
    )


def folder_images(folder: Path, skipped: Counter[str]) -> dict[str, list[Path]]:
    """The files that `open_folder` takes for images, unread, by class in its order.

    Args:
        skipped: is told what was passed over.

    Raises DataError if a folder cannot be opened, or a link leads nowhere.
    """
    return {x: _images_below(folder / x, skipped) for x in _class_folders(folder, skipped)}


def _class_folders(folder: Path, skipped: Counter[str]) -> list[str]:
    names = []
    for entry in entries_of(str(folder)):
        if entry.name.lower() in SYSTEM_FOLDERS:
            skipped[SYSTEM] += 1
        elif not _is_dir(entry):
            _check_link(entry, "a class")
            # What lies beside the class folders belongs to no class.
            if not entry.name.startswith("."):
                skipped["outside the class folders"] += 1
        elif entry.name.startswith("."):
            skipped[f"class folder {shown(entry.name)}, whose name begins with a dot"] += 1
        elif is_within(os.path.realpath(folder), os.path.realpath(entry.path)):
            skipped[BACK] += 1  # a class of all the others' images
        else:
            names.append(entry.name)
    return sorted(names)


def _images_below(folder: Path, skipped: Counter[str]) -> list[Path]:
    """Every image file below `folder`, in an order that does not depend on the file system."""
    found: list[Path] = []

    def enters(entry: os.DirEntry[str]) -> bool:
        if entry.name.startswith(".") or entry.name.lower() in SYSTEM_FOLDERS:
            return False
        return _is_dir(entry)

    for place, entries in folders_below(str(folder), enters, lambda: skipped.update([BACK])):
        for entry in entries:
            if entry.name.startswith("."):
                skipped["hidden (name begins with a dot)"] += 1
            elif entry.name.lower() in SYSTEM_FOLDERS:
                skipped[SYSTEM] += 1
            elif _is_dir(entry):
                continue
            elif kind := _unfit(entry):
                skipped[kind] += 1
            else:
                found.append(Path(place, entry.name))
    return sorted(found)


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as exc:  # a link that leads to itself
        reason = exc.strerror or reason_of(exc)
        raise DataError(
            f"{entry.path} cannot be followed ({reason}): mend the link or remove it"
        ) from None


def _check_link(entry: os.DirEntry[str], perhaps: str) -> None:
    """Raise DataError for a link to nowhere: any number of images may be missing behind it."""
    if entry.is_symlink() and not os.path.exists(entry.path):
        raise DataError(
            f"{entry.path} is a link to what is not there, perhaps {perhaps}: mend the link or "
            "remove it"
        )


def _unfit(entry: os.DirEntry[str]) -> str:
    """What kind of file an entry is if it is no image to read; empty if it is one.

    Raises DataError if it is a link to nowhere that no suffix names an image.
    """
    name = entry.name.lower()
    suffix = os.path.splitext(name)[1]
    if _is_special(entry):
        return "no regular file"
    if name.endswith(IMAGE_SUFFIXES):
        return ""
    _check_link(entry, "a folder of images")
    if name.endswith(SPARE_SUFFIXES):
        return "backup or unfinished download"
    kind = BOXED_SUFFIXES.get(suffix) or image_kind(Path(entry.path))
    if kind in ("AVIF", "HEIF") and not can_decode(kind):
        return f"{kind} ({install_hint('heif')} to read them)"
    return "" if kind else shown(suffix)[1:-1] if suffix else "no image, without suffix"


def _is_special(entry: os.DirEntry[str]) -> bool:
    """Whether it is a pipe, a socket or a device; a link to nowhere is none, and an error later."""
    try:
        return not stat.S_ISREG(entry.stat().st_mode)
    except OSError:
        return False
