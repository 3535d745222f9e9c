"""How a complete file or folder takes its place, at once, and what a killed command left.

A folder is written beside its place, under a hidden name, locked by who writes it. The lock goes
with the process, whatever ends it: so the next command knows which of them nobody needs any more.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: what a killed command left stays there
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "Seen",
    "clear_leftovers",
    "folder_beside",
    "lock_folder",
    "put_file_in_place",
    "put_in_place",
    "restore",
    "seen_at",
]

# From linux/fs.h, fcntl.h and macOS's sys/stdio.h.
AT_FDCWD, RENAME_EXCHANGE, RENAME_SWAP = -100, 2, 2
PATIENCE = 1.0  # seconds for the moment between two renames


@dataclass(frozen=True)
class Seen:
    """What lay at a path when it was looked at: nothing, or which file or link, and its state."""

    stamp: tuple[int, ...] = ()


def seen_at(path: Path) -> Seen:
    """What lies at `path` now; a link counts as itself."""
    try:
        found = path.lstat()
    except OSError:
        return Seen()
    # A folder's times are those of what is written into it, in the meantime by others too.
    times = () if stat.S_ISDIR(found.st_mode) else (found.st_size, found.st_mtime_ns)
    return Seen((found.st_dev, found.st_ino, *times))


def put_file_in_place(file: Path, path: Path, was: Seen | None) -> None:
    """Move a complete file to `path`.

    Args:
        was: what it may replace; None for whatever is there.

    Raises FileExistsError if anything else is there by now.
    """
    if was == Seen():
        try:
            os.link(file, path)  # of two who do so at once, one fails
            return
        except FileExistsError:
            raise
        except OSError:  # a file system without links, such as exFAT
            pass
    if was is not None and seen_at(path) != was:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    file.replace(path)


@contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """An empty folder beside `path`, locked; removed at the end, with whatever is in it then."""
    handle = None
    while handle is None:
        folder = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
        folder.mkdir(0o777)
        # Another command may clear it in the moment before it is locked: then take another name.
        with suppress(FileNotFoundError, BlockingIOError):
            handle = lock_folder(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if handle >= 0:
            os.close(handle)


def put_in_place(folder: Path, path: Path) -> None:
    """Move a complete folder to `path`; what was there is then in its place, or removed.

    Where the system can exchange two names, `path` is at every moment the old or the new folder.
    Elsewhere it is missing for the moment between two renames, and `restore` mends a kill in it.
    """
    if not os.path.lexists(path):
        folder.replace(path)
    elif not _exchange(folder, path):
        old = folder.with_suffix(".old")
        path.replace(old)
        try:
            folder.replace(path)
        except OSError:
            old.replace(path)
            raise
        _remove(old)
    elif folder.is_symlink():  # a link was replaced, not what it leads to
        folder.unlink()


def restore(path: Path) -> None:
    """Put back what was at `path` if a command was killed between two renames."""
    deadline = time.monotonic() + PATIENCE
    while not os.path.lexists(path):
        # Both are complete; the old one is what everybody knew.
        old = next((x for x in _beside(path, "old") if x.with_suffix(".tmp").is_dir()), None)
        if old is None:
            return
        # Whoever holds the lock may be between the two renames right now.
        if _is_free(old.with_suffix(".tmp")) or time.monotonic() > deadline:
            with suppress(OSError):
                old.replace(path)
            return
        time.sleep(0.005)


def clear_leftovers(path: Path) -> None:
    """Remove the hidden folders that commands left beside `path` when they were killed."""
    for folder in _beside(path, "tmp"):
        _remove_free(folder)
    for old in _beside(path, "old"):
        if not old.with_suffix(".tmp").exists():
            _remove_free(old)


def _beside(path: Path, kind: str) -> list[Path]:
    name = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{16}}\.{kind}")
    try:
        return [x for x in path.parent.iterdir() if name.fullmatch(x.name)]
    except OSError:
        return []


def lock_folder(folder: Path) -> int:
    """A handle that locks a folder until it is closed; -1 where there are no such locks.

    Raises BlockingIOError if another process has it, FileNotFoundError if it is gone.
    """
    if fcntl is None:
        return -1
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(handle), os.stat(folder)):
            raise FileNotFoundError(folder)
    except (BlockingIOError, FileNotFoundError):
        os.close(handle)
        raise
    except OSError:  # some network file systems lock no folders
        os.close(handle)
        return -1
    return handle


def _is_free(folder: Path) -> bool:
    """Whether no living process has locked the folder; false where nobody can know."""
    try:
        handle = lock_folder(folder)
    except OSError:
        return False
    if handle < 0:
        return False
    os.close(handle)
    return True


def _remove_free(folder: Path) -> None:
    """Remove a folder that no living process has locked.

    Under its lock: let go of before, whoever has just made the folder could lock it, and lose it.
    """
    try:
        handle = lock_folder(folder)
    except OSError:
        return
    if handle < 0:  # nobody can know
        return
    try:
        _remove(folder)
    finally:
        os.close(handle)


def _remove(folder: Path) -> None:
    folder.unlink() if folder.is_symlink() else shutil.rmtree(folder, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; false if the system or the file system cannot."""
    call = _exchange_call()
    if call is None:
        return False
    if not call(os.fsencode(one), os.fsencode(other)):
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(other))


def _exchange_call() -> Callable[[bytes, bytes], int] | None:
    if sys.platform.startswith("linux"):
        call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
        if call is None:  # an old glibc, or musl
            return None
        return lambda a, b: call(AT_FDCWD, a, AT_FDCWD, b, RENAME_EXCHANGE)
    if sys.platform == "darwin":
        call = getattr(ctypes.CDLL(None, use_errno=True), "renamex_np", None)
        return None if call is None else lambda a, b: call(a, b, RENAME_SWAP)
    return None
