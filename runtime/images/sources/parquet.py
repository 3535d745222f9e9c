"""Images in Parquet files of Hugging Face's layout: a column `{bytes, path}`, one of labels."""

from __future__ import annotations

import mmap
import tempfile
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from prunion.runtime.base import Orientation, install_hint, json_of, reason_of, shown
from prunion.runtime.errors import DataError, MissingDependencyError, OutputError
from prunion.runtime.images.image_check import ImageCheck, decode_image
from prunion.runtime.images.labels import Split
from prunion.runtime.images.sources.table import check_columns

__all__ = ["EncodedStore", "are_parquet", "open_parquet"]

ROWS_AT_ONCE = 256
READ_AT_ONCE = 1 << 20  # bytes of a column
# Images are compressed already: what unpacks to far more than the file holds is no data set.
MOST_RATIO, NO_MATTER = 100, 1 << 30  # and bytes below which no ratio counts
BATCH_BYTES = 512 << 20


def are_parquet(paths: Sequence[Path]) -> bool:
    """Whether paths name Parquet files, by their names."""
    return all(path.suffix.lower() == ".parquet" and not path.is_dir() for path in paths)


def open_parquet(
    paths: tuple[Path, ...],
    columns: tuple[str, str] = ("image", "label"),
    orientation: Orientation = "exif",
) -> Split:
    """The images and labels of one or several files, read as one.

    `columns` hold images and labels. Names come from the `huggingface` schema metadata; without it
    there are none. Raises DataError if a file, a column or an image cannot be read.
    """
    store, check = EncodedStore(), ImageCheck(orientation)
    labels: list[Any] = []
    rows = _Rows(paths, [])
    named: tuple[str, ...] | None = None
    for number, path in enumerate(paths):
        file = _open(path, columns)
        names = _class_names(path, file, columns[1])
        if number and names != named:
            raise DataError(f"{path} names other classes than {paths[0]}: write them alike")
        named = names
        rows.starts.append(len(labels))
        for images, values in _batches(file, columns, rows, len(labels)):
            check.check(images, [rows.name(len(labels) + i) for i in range(len(images))])
            store.extend(images)
            size = sum(x.stat().st_size for x in paths[: number + 1])
            if store.ends[-1] > max(NO_MATTER, MOST_RATIO * size):
                raise DataError(
                    f"{path} unpacks to over {MOST_RATIO} times its size: it repeats images "
                    "without end, write each one once"
                )
            labels += values
    if not labels:
        raise DataError(f"{paths[0]} holds no images: give a file with rows")
    store.seal()
    prints = np.array(check.prints, np.int64)
    return Split(
        labels=labels,
        names=named,
        read=lambda index: decode_image(store[index], rows.name(index), orientation),
        place=rows.name,
        met=check.met,
        prints=prints,
        typed=True,
    )


@dataclass
class EncodedStore:
    """Encoded images by index, copied to a temporary file, so memory holds only what is read.

    Parquet must decompress a whole row group to give one image; here any image is one slice of the
    mapped file, which worker processes share.
    """

    file: IO[bytes] = field(default_factory=tempfile.TemporaryFile)
    ends: list[int] = field(default_factory=lambda: [0])
    view: mmap.mmap | None = None

    def extend(self, images: Iterable[bytes]) -> None:
        """Append images; only before the first is read."""
        with _told():
            for image in images:
                self.file.write(image)
                self.ends.append(self.ends[-1] + len(image))

    def seal(self) -> EncodedStore:
        """End writing and map the file. The store must not be empty."""
        with _told():
            self.file.flush()
        self.view = mmap.mmap(self.file.fileno(), 0, access=mmap.ACCESS_READ)
        self.offsets = np.asarray(self.ends, np.int64)
        self.ends = []
        return self

    def __getitem__(self, index: int) -> bytes:
        if self.view is None:
            raise ValueError("the store is not sealed")
        return self.view[int(self.offsets[index]) : int(self.offsets[index + 1])]


@contextmanager
def _told() -> Iterator[None]:
    """Say which place for temporary files is full: the error of a write names none."""
    try:
        yield
    except OSError as exc:
        raise OutputError(
            f"{tempfile.gettempdir()}, where images of Parquet files are copied to, cannot be "
            f"written ({exc.strerror}): free some space, or set TMPDIR to a folder with room"
        ) from None


@dataclass(frozen=True)
class _Rows:
    """Where each image stands: file `i` begins at image `starts[i]`."""

    paths: tuple[Path, ...]
    starts: list[int]

    def name(self, index: int) -> str:
        """How messages name an image: file and row."""
        file = bisect_right(self.starts, index) - 1
        return f"{self.paths[file]} row {index - self.starts[file]}"


def _open(path: Path, columns: tuple[str, str]) -> Any:
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingDependencyError(
            f"{path} is a Parquet file, and pyarrow is not installed: {install_hint('parquet')}"
        ) from None
    try:
        # Not mapped into memory: of a mapped file that has become shorter the system ends the
        # process. The buffer keeps it from reading whole column chunks at once.
        file = pq.ParquetFile(path, buffer_size=READ_AT_ONCE)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: correct the path") from None
    except (OSError, ValueError) as exc:  # pyarrow's own errors are ValueErrors
        raise DataError(
            f"{path} is not a readable Parquet file ({reason_of(exc)}): write or copy it again"
        ) from None
    check_columns(path, file.schema_arrow.names, columns)
    return file


def _class_names(path: Path, file: Any, label: str) -> tuple[str, ...] | None:
    """The names in the schema's `huggingface` metadata, if there are any."""
    raw = (file.schema_arrow.metadata or {}).get(b"huggingface")
    try:
        names = json_of(raw)["info"]["features"][label]["names"] if raw else None
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    if isinstance(names, dict):  # an older spelling: {"0": "daisy", …}, sorted in any way
        places = [str(place) for place in range(len(names))]
        names = [names[x] for x in places] if set(names) == set(places) else names
    if names is not None and not (isinstance(names, list) and all(_is_name(x) for x in names)):
        raise DataError(
            f"{path} names its classes {shown(names)}: write a list of names, or leave it out"
        )
    return tuple(map(str, names)) if names else None


def _is_name(value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)


def _batches(
    file: Any, columns: tuple[str, str], rows: _Rows, index: int
) -> Iterator[tuple[list[bytes], list[Any]]]:
    """Images and labels, some rows at a time; the first is image `index` of the set."""
    batches = file.iter_batches(
        batch_size=_rows_at_once(file.metadata, rows.name(index)),
        columns=list(dict.fromkeys(columns)),
    )
    while True:
        try:
            batch = next(batches, None)
        except (OSError, ValueError) as exc:
            raise DataError(
                f"{rows.name(index)} and what follows cannot be read ({reason_of(exc)}): write or "
                "copy the file again"
            ) from None
        if batch is None:
            return
        try:
            cells, values = (batch.column(name).to_pylist() for name in columns)
        except (ValueError, OverflowError, MemoryError) as exc:  # no UTF-8, no such date
            raise DataError(
                f"{rows.name(index)} and what follows is none of its column's type "
                f"({reason_of(exc)}): write the file again"
            ) from None
        yield [_image_bytes(cell, rows, i) for i, cell in enumerate(cells, index)], values
        index += batch.num_rows


def _rows_at_once(metadata: Any, place: str) -> int:
    """Rows whose images fit into memory, even if each were as large as its whole column chunk.

    A dictionary holds a value once for any number of rows, each of which is unpacked to all of it.
    """
    largest = 1
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for number in range(row_group.num_columns):
            column = row_group.column(number)
            size, packed = column.total_uncompressed_size, column.total_compressed_size
            if size > max(NO_MATTER, MOST_RATIO * packed):
                raise DataError(
                    f"{place}: a column unpacks to {size / 2**30:.1f} GiB, over {MOST_RATIO} times "
                    "its size: write the file again without compression"
                )
            if any("DICTIONARY" in encoding for encoding in column.encodings):
                largest = max(largest, size)
    return max(1, min(ROWS_AT_ONCE, BATCH_BYTES // largest))


def _image_bytes(cell: Any, rows: _Rows, index: int) -> bytes:
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(data, bytes) or not data:
        raise DataError(
            f"{rows.name(index)} has no image bytes: store them in image.bytes, or remove the row"
        )
    return data
