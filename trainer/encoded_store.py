"""Encoded images of any total size, written to a nameless file once and mapped for reading."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import IO

import numpy as np

__all__ = ["EncodedStore"]


@dataclass
class EncodedStore:
    """Byte strings by index. They lie in a temporary file, so memory holds only what is read.

    Parquet must decompress a whole row group to give one image; here any image is one slice.
    """

    file: IO[bytes] = field(default_factory=tempfile.TemporaryFile)
    ends: list[int] = field(default_factory=lambda: [0])
    view: mmap.mmap | None = None

    def extend(self, images: Iterable[bytes]) -> None:
        """Append images; only before the first is read."""
        for image in images:
            self.file.write(image)
            self.ends.append(self.ends[-1] + len(image))

    def seal(self) -> EncodedStore:
        """End writing and map the file. The store must not be empty."""
        self.file.flush()
        self.view = mmap.mmap(self.file.fileno(), 0, access=mmap.ACCESS_READ)
        self.offsets = np.asarray(self.ends, np.int64)
        self.ends = []
        return self

    def __getitem__(self, index: int) -> bytes:
        if self.view is None:
            raise ValueError("the store is not sealed")
        return self.view[int(self.offsets[index]) : int(self.offsets[index + 1])]
