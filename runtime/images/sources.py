"""What paths of labelled images name: class folders, Parquet files, tar shards, or tables."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from prunion.runtime.base import Orientation
from prunion.runtime.images.folder import open_folder
from prunion.runtime.images.labels import Split
from prunion.runtime.images.parquet import are_parquet, open_parquet
from prunion.runtime.images.table import are_tables, open_tables
from prunion.runtime.images.tars import are_tars, open_tars

__all__ = ["has_columns", "image_files", "open_images"]

SHARDS = (".parquet", ".tar")


def image_files(paths: Sequence[Path]) -> tuple[Path, ...]:
    """The paths with patterns and folders of shards replaced by what they name, in order.

    What exists is no pattern. A folder that holds folders holds classes, and stays.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += _shards(path) or [path]
        elif not path.exists() and any(sign in str(path) for sign in "*?["):
            found += [Path(x) for x in sorted(glob.glob(str(path), recursive=True))] or [path]
        else:
            found.append(path)
    return tuple(found)


def has_columns(files: Sequence[Path]) -> bool:
    """Whether they are all Parquet, all tables or all tars: what has named parts."""
    return are_parquet(files) or are_tables(files) or are_tars(files)


def open_images(
    files: tuple[Path, ...],
    columns: tuple[str, str] = ("image", "label"),
    orientation: Orientation = "exif",
) -> Split | None:
    """The images of `image_files`; None if they are neither one folder nor files of one kind.

    Raises DataError if they cannot be read.
    """
    if are_parquet(files):
        return open_parquet(files, columns, orientation)
    if are_tables(files):
        return open_tables(files, columns, orientation)
    if are_tars(files):
        return open_tars(files, columns, orientation)
    if len(files) == 1 and files[0].is_dir():
        return open_folder(files[0], orientation)
    return None


def _shards(folder: Path) -> list[Path]:
    """The shards of one kind in a folder that holds no other folder, by name."""
    try:
        inside = [x for x in folder.iterdir() if not x.name.startswith(".")]
    except OSError:  # reading it will say what is wrong
        return []
    if any(x.is_dir() for x in inside):
        return []
    kinds = [sorted(x for x in inside if x.suffix.lower() == kind) for kind in SHARDS]
    return next((shards for shards in kinds if shards), [])
