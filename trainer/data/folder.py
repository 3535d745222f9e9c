"""Images in class folders: `folder/CLASS/image.jpg`."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from prunion.runtime.errors import DataError
from prunion.trainer.data.image_set import ImageSet, digest_of
from prunion.trainer.data.images import ImageCheck, decode_image

__all__ = ["IMAGE_SUFFIXES", "open_folder"]

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


def open_folder(folder: Path) -> tuple[tuple[str, ...], ImageSet]:
    """The class names (the folders' names, sorted) and the images below each.

    Files of other kinds and hidden ones are passed over. Raises DataError if there is no class
    folder, one is empty, or an image cannot be read.
    """
    classes = tuple(sorted(_class_folders(folder)))
    if not classes:
        raise DataError(f"{folder} has no class folders: put its images in one folder per class")
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = _images_below(folder / name)
        if not found:
            raise DataError(
                f"{folder / name} holds no images ({', '.join(s[1:] for s in IMAGE_SUFFIXES)}): "
                "add some, or remove the folder"
            )
        paths += found
        labels += [label] * len(found)
    ImageCheck().check(paths, list(map(str, paths)))
    return classes, ImageSet(
        np.asarray(labels, np.int64),
        lambda index: decode_image(paths[index], str(paths[index])),
        digest_of((path.relative_to(folder).as_posix(), path.stat().st_size) for path in paths),
    )


def _class_folders(folder: Path) -> list[str]:
    try:
        return [p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")]
    except OSError as exc:
        reason = exc.strerror or str(exc)
        raise DataError(f"{folder} cannot be opened ({reason}): correct the path") from None


def _images_below(folder: Path) -> list[Path]:
    """Every image file below `folder`, in an order that does not depend on the file system."""
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(place, name)
            for name in files
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
        ]
    return sorted(found)
