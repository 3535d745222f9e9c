"""Images that a table names: CSV, TSV or JSONL, with a column of paths and one of labels."""

from __future__ import annotations

import csv
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prunion.runtime.base import Orientation, is_pipe, json_of, listed, reason_of, shown
from prunion.runtime.errors import DataError
from prunion.runtime.images.image_check import ImageCheck, decode_image
from prunion.runtime.images.labels import Split, written_labels

__all__ = ["TABLE_SUFFIXES", "are_tables", "check_columns", "open_tables"]

DELIMITERS = {".csv": ",", ".tsv": "\t"}
TABLE_SUFFIXES = (*DELIMITERS, ".jsonl")
MOST_LINE, MOST_BYTES = 1 << 20, 1 << 30  # what is longer is no table of paths


def are_tables(paths: Sequence[Path]) -> bool:
    """Whether paths name tables of one kind, lines of text or of JSON, by their names."""
    kinds = {path.suffix.lower() in DELIMITERS for path in paths}
    named = all(path.suffix.lower() in TABLE_SUFFIXES and not path.is_dir() for path in paths)
    return named and len(kinds) == 1


def open_tables(
    paths: Sequence[Path],
    columns: tuple[str, str] = ("image", "label"),
    orientation: Orientation = "exif",
) -> Split:
    """The images and labels of one or several tables, read as one.

    `columns` hold the images' paths and their labels. A relative path counts from its table's
    folder and stays in it; an absolute one may lie anywhere. Where every label of a CSV is a whole
    number, they are numbers.

    Raises DataError, with file and line, for what cannot be read.
    """
    rows = [row for path in paths for row in _rows(path, columns)]
    if not rows:
        raise DataError(f"{paths[0]} names no images: give a table with rows")
    for row in rows:
        _check_file(row)
    labels = [row.label for row in rows]
    check = ImageCheck(orientation)
    check.check([row.image for row in rows], [row.place for row in rows])
    prints = np.array(check.prints, np.int64)
    written = paths[0].suffix.lower() in DELIMITERS
    return Split(
        labels=written_labels(labels) if written else labels,
        names=None,
        read=lambda index: decode_image(
            rows[index].image, rows[index].place, orientation, prints[index]
        ),
        place=lambda index: rows[index].place,
        met=check.met,
        prints=prints,
        typed=not written,
    )


def check_columns(place: Path | str, head: list[str], columns: tuple[str, str]) -> None:
    """Raise DataError unless `head` has each of `columns` once; `place` is how it is named."""
    missing = [name for name in dict.fromkeys(columns) if head.count(name) != 1]
    if missing:
        told = " and ".join(
            f"{'several columns' if head.count(x) else 'no column'} {shown(x)}" for x in missing
        )
        has = listed(list(map(str, head)), 12)
        several = any(x in head for x in missing)
        raise DataError(
            f"{place} has {told} (it has {shown(has)[1:-1]}): "
            f"{'rename all but one, or ' if several else ''}name "
            f"{'others' if several else 'them'} with image_column and label_column"
        )


@dataclass(frozen=True)
class _Row:
    """One image of a table: as the table names it, where it is, its label as stored."""

    table: Path
    line: int
    name: str
    image: Path
    label: Any

    @property
    def place(self) -> str:
        """How messages name the image."""
        return f"{self.table} line {self.line} ({shown(self.name)[1:-1]})"


def _rows(table: Path, columns: tuple[str, str]) -> Iterator[_Row]:
    folder = os.path.abspath(table.parent)  # as written, `..` would lie in "." and in ".."
    for line, name, label in _cells(table, columns):
        if not isinstance(name, str) or not name.strip() or "\0" in name:
            raise DataError(
                f"{table} line {line} has image {shown(name)}: give the path of an image file"
            )
        image = Path(os.path.normpath(table.parent / name))
        inside = Path(os.path.abspath(image)).is_relative_to(folder)
        if not inside and not Path(name).is_absolute():
            raise DataError(
                f"{table} line {line} names {shown(name)}, which leads out of the table's folder: "
                "put the table above its images, or give an absolute path"
            )
        yield _Row(table, line, name, image, label)


def _cells(table: Path, columns: tuple[str, str]) -> Iterator[tuple[int, Any, Any]]:
    """Line, image and label of every row."""
    delimiter = DELIMITERS.get(table.suffix.lower())
    if is_pipe(table):
        raise DataError(f"{table} is a pipe or a device: give the table's file")
    try:
        if table.stat().st_size > MOST_BYTES:
            raise DataError(f"{table} is larger than 1 GiB: give a table of paths and labels")
        # utf-8-sig: spreadsheets begin a file with a byte-order mark.
        with table.open(encoding="utf-8-sig", newline="") as file:
            lines = _lines(table, file)
            yield from (
                _csv(table, lines, columns, delimiter)
                if delimiter
                else _jsonl(table, lines, columns)
            )
    except FileNotFoundError:
        raise DataError(f"{table} does not exist: correct the path") from None
    except (OSError, ValueError, csv.Error) as exc:  # no UTF-8, a field without end
        fix = "write it as UTF-8" if isinstance(exc, UnicodeDecodeError) else "write it again"
        raise DataError(f"{table} cannot be read ({reason_of(exc)}): {fix}") from None


def _lines(table: Path, file: Any) -> Iterator[str]:
    while line := file.readline(MOST_LINE + 1):
        if len(line) > MOST_LINE:
            raise DataError(f"{table} has a line of over 1 MiB: give a table of paths and labels")
        yield line


def _csv(
    table: Path, lines: Iterator[str], columns: tuple[str, str], delimiter: str
) -> Iterator[tuple[int, Any, Any]]:
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    head = next(reader, [])
    if not head:
        raise DataError(
            f"{table} has no first line: name the columns {' and '.join(columns)} in it"
        )
    check_columns(table, head, columns)
    image, label = map(head.index, columns)
    for row in reader:
        if not row:
            continue
        if len(row) != len(head):
            raise DataError(
                f"{table} line {reader.line_num} has {len(row)} fields and the first line "
                f"{len(head)}: write them alike, with quotes around what holds {delimiter!r}"
            )
        yield reader.line_num, row[image], row[label]


def _jsonl(
    table: Path, lines: Iterator[str], columns: tuple[str, str]
) -> Iterator[tuple[int, Any, Any]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json_of(line)
        except (ValueError, RecursionError) as exc:
            raise DataError(
                f"{table} line {number} is no JSON ({reason_of(exc)}): correct it"
            ) from None
        if not isinstance(row, dict):
            raise DataError(
                f'{table} line {number} is {shown(row)}: give {{"image": …, "label": …}}'
            )
        check_columns(f"{table} line {number}", list(row), columns)
        yield number, row[columns[0]], row[columns[1]]


def _check_file(row: _Row) -> None:
    """Raise DataError where an image's file is no regular one: a pipe would never end."""
    try:
        found = row.image.stat()
    except (OSError, ValueError) as exc:
        reason = getattr(exc, "strerror", None) or reason_of(exc)
        raise DataError(
            f"{row.place} cannot be opened ({reason}): correct the path, or remove the row"
        ) from None
    if not stat.S_ISREG(found.st_mode):
        raise DataError(f"{row.place} is no file: correct the path, or remove the row")
