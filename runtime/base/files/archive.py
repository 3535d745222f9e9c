"""Tar archives that nobody vouches for, read within bounded memory, and files of them by place.

tarfile reads all that stands before a file at once: long names, notes in pax's form, maps of holes,
and as many of these in a row as an archive has. Notes on all files it keeps to the archive's end.
"""

from __future__ import annotations

import os
import tarfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["BoundedTar", "Placed", "holds_data"]

MOST_HEADER = 1 << 20  # bytes of all that stands before one file
MOST_NOTES = 1 << 16  # characters of notes on all files
PADDING = 1 << 20  # bytes behind the end that are looked at together


class BoundedTar(tarfile.TarFile):
    """Reads members one after the other with `next`, and keeps none of them.

    Raises tarfile.ReadError where more stands before a file, or is told of all files, than any
    archive of images needs.
    """

    def __init__(
        self, name: Any = None, mode: Any = "r", fileobj: Any = None, **options: Any
    ) -> None:
        self._counted = _Counted(fileobj)
        file: Any = self._counted
        super().__init__(name, mode, file, **options)

    def next(self) -> tarfile.TarInfo | None:
        """The next member; None at the end."""
        self._counted.left = MOST_HEADER
        member = super().next()
        self._counted.left = None
        vars(self)["members"].clear()  # a million of them fill memory
        if sum(len(key) + len(value) for key, value in self.pax_headers.items()) > MOST_NOTES:
            raise tarfile.ReadError(f"notes on all files of over {MOST_NOTES >> 10} KiB")
        return member


def holds_data(raw: BinaryIO, place: int) -> bool:
    """Whether anything but zeros lies behind a place; holes are passed over without reading."""
    zeros, whence = bytes(PADDING), os.SEEK_SET
    with suppress(AttributeError, OSError):  # of systems that tell no holes
        raw.seek(0, os.SEEK_DATA)
        whence = os.SEEK_DATA
    while True:
        try:
            place = raw.seek(place, whence)
        except OSError:  # no data from there on
            return False
        block = raw.read(PADDING)
        if not block or block != zeros[: len(block)]:
            return bool(block)
        place += len(block)


class Placed:
    """A file that is kept open and read at any place, by any number of threads and processes.

    It is not mapped into memory: where a mapped file has become shorter, a read of it ends the
    whole process. Opening and reading raise OSError, EOFError for what lies past the file's end.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self._lock = threading.Lock()

    def read(self, start: int, size: int) -> bytes:
        """The `size` bytes from `start` on, all of them."""
        if hasattr(os, "pread"):  # after a fork the place in a file is shared
            data = os.pread(self._file.fileno(), size, start)
        else:
            with self._lock:
                self._file.seek(start)
                data = self._file.read(size)
        if len(data) < size:
            raise EOFError("it has become shorter since it was opened")
        return data


class _Counted:
    """What tarfile asks of a file; `left` is how many bytes it may read, None for any number."""

    def __init__(self, raw: Any) -> None:
        self.raw = raw
        self.left: int | None = None

    def read(self, size: int = -1) -> bytes:
        if self.left is not None:
            self.left -= size
            if size < 0 or self.left < 0:
                raise tarfile.ReadError(f"a header of over {MOST_HEADER >> 20} MiB")
        found: bytes = self.raw.read(size)
        return found

    def seek(self, place: int) -> Any:
        return self.raw.seek(place)

    def tell(self) -> int:
        return int(self.raw.tell())

    def close(self) -> None:
        self.raw.close()
