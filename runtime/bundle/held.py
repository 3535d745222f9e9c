"""A file of a bundle, held: what is read of it later is what was hashed when it was opened."""

from __future__ import annotations

import hashlib
import os
import weakref
from collections.abc import Callable
from pathlib import Path

from prunion.runtime.errors import BundleError

__all__ = ["HeldFile", "HeldFileError"]

FIX = "export again or copy the bundle again"


class HeldFileError(BundleError):
    """A file of a bundle in use is not to be had as it was: nothing else is at fault."""


class HeldFile:
    """A file that stays open, and its hash: read again, it is the very bytes or an error.

    An open file outlives its name, so its folder may be replaced or deleted. On Windows it would
    keep the folder from being replaced, so there the bytes are kept instead; so are those of
    `small` files, of which a bundle may have more than a process may keep open.
    """

    def __init__(self, path: Path, *, small: bool = False) -> None:
        self.path = path
        self._kept: bytes | None = None
        self._handle = -1
        self._release: Callable[[], object] = lambda: None
        if small or not hasattr(os, "pread"):
            self._kept = path.read_bytes()
            self.size, self.sha256 = len(self._kept), hashlib.sha256(self._kept).hexdigest()
            return
        self._handle = os.open(path, os.O_RDONLY)
        self._release = weakref.finalize(self, os.close, self._handle)
        digest = hashlib.sha256()
        self.size = 0
        while block := os.pread(self._handle, 1 << 20, self.size):
            digest.update(block)
            self.size += len(block)
        self.sha256 = digest.hexdigest()

    def read(self) -> bytes:
        """The bytes. Raises HeldFileError if somebody wrote over them, or the file is closed."""
        if self._kept is not None:
            return self._kept
        if self._handle < 0:
            raise HeldFileError(f"{self.path} is closed: load the bundle again")
        try:
            data = os.pread(self._handle, self.size + 1, 0)
            while len(data) < self.size and (more := os.pread(self._handle, self.size, len(data))):
                data += more  # one call gives 2 GiB at most
        except OSError as exc:
            raise HeldFileError(f"{self.path} cannot be read ({exc.strerror}): {FIX}") from None
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise HeldFileError(
                f"{self.path} was written over while it was in use: load the bundle again, and "
                "replace bundles as a whole"
            )
        return data

    def close(self) -> None:
        """Give the file back; it cannot be read any more."""
        self._kept, self._handle = None, -1
        self._release()
