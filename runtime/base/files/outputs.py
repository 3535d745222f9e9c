"""Files and folders that appear whole or not at all, and the one rule of what may be replaced.

What is written gets the mode that the kernel gives any new file of the user, `0o666 & ~umask`. To
read a process's umask one must change it, and until it is set back another thread's file is open to
everybody: so nothing here does, every file and folder is created with its full mode.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from prunion.runtime.base.files.exchange import (
    Seen,
    clear_leftovers,
    folder_beside,
    put_file_in_place,
    put_in_place,
    restore,
    seen_at,
)
from prunion.runtime.base.files.failed_write import noted, told_write
from prunion.runtime.errors import OutputError, PrunionError

__all__ = [
    "LITTER",
    "Wrote",
    "check_output",
    "check_space",
    "is_pipe",
    "new_folder",
    "replace_file",
    "sha256_file",
    "strangers",
    "unlisted",
]

# Says in a few words what at a path a command did not write, such as "holds notes.txt"; "" if all
# of it is its own.
Wrote = Callable[[Path], str]
LITTER = frozenset((".DS_Store", "Thumbs.db", "desktop.ini"))  # of those who only looked
BUNDLE = ("manifest.json", "units.json")  # a folder with these is a bundle


@contextmanager
def replace_file(path: Path | str, was: Seen | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it over `path` when the block succeeds.

    Args:
        was: what `check_output` saw there and allowed to replace; None for whatever is there.

    Raises OutputError, with `path` as it is, if it cannot be written, or another file is there.
    """
    path = Path(path)
    _refuse_lost_link(path)
    with told_write(path) as of_block:
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(path)
        with folder_beside(path) as folder:
            temporary = folder / path.name
            mode = _create(temporary)
            with noted(of_block):
                yield temporary
            _finish(temporary, mode)
            try:
                put_file_in_place(temporary, path, was)
            except FileExistsError:
                raise OutputError(
                    f"{path} was written by somebody else while this command worked, and stays: "
                    "choose another place and run it again"
                ) from None


@contextmanager
def new_folder(
    path: Path | str, *, force: bool = False, wrote: Wrote | None = None
) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; move it to `path` when the block succeeds.

    With `force` an old folder is replaced once the new one is complete, and only if all that is in
    it is of the command's own writing, as `wrote` tells. Raises PrunionError if `path` exists and
    may not be replaced, OutputError if it cannot be written.
    """
    path = Path(path)
    check_output(path, force=force, wrote=wrote, whole=True)
    with told_write(path) as of_block:
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(path)
        with folder_beside(path) as folder:
            with noted(of_block):
                yield folder
            probe = folder / f".{secrets.token_hex(8)}"
            mode = _create(probe)
            probe.unlink()
            for file in sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()):
                _finish(file, mode)
            check_output(path, force=force, wrote=wrote, whole=True)  # hours may have passed
            put_in_place(folder, path)


def check_output(
    path: Path | str,
    *,
    force: bool,
    wrote: Wrote | None = None,
    inputs: Sequence[Path | str] = (),
    whole: bool = False,
) -> Seen:
    """Check, before the work, that a command may write `path`; nothing is changed.

    Args:
        wrote: what at `path` the command did not write, so that `force` must leave it; without it
            nothing may be there but an empty folder.
        inputs: what the command reads, which it must never replace.
        whole: a folder that is there is replaced, not written into.

    Raises:
        PrunionError: `path` exists and may not be replaced, or is inside a bundle.
        OutputError: nothing can be written there.

    Returns what lies there, for `replace_file`.
    """
    path = Path(path)
    restore(path)
    was = seen_at(path)
    _refuse_bundle(path)
    if path.exists():
        _check_replaced(path, force, wrote or strangers, inputs)
    else:
        for above in (path, *path.absolute().parents):
            _refuse_lost_link(above)
            # Made on the way, the folder would stay behind, and `x/..` be one that was there.
            if above.name == ".." and not above.parent.exists():
                raise OutputError(
                    f"{path} goes through {above.parent}, which does not exist: give the path "
                    "without '..'"
                )
    _check_writable(path, path.is_dir() and not whole)
    return was


def is_pipe(path: Path | str) -> bool:
    """Whether something lies there that is neither file nor folder: reading it may never end."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # whoever opens it tells why
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def check_space(path: Path | str, needed: int, fix: str) -> None:
    """Raise OutputError unless `needed` bytes fit on the disk where `path` is to be."""
    free = shutil.disk_usage(_existing(Path(path))).free
    if free < needed:
        raise OutputError(
            f"{path} needs {_size(needed)}, and {_size(free)} are free on its disk: free some "
            f"space, or {fix}"
        )


def strangers(folder: Path, known: Collection[str] = ()) -> str:
    """What in a folder has none of the `known` names, as `Wrote` tells it."""
    if not folder.is_dir():
        return "is a file"
    found = sorted(x.name for x in folder.iterdir() if x.name not in known)
    found = [x for x in found if x not in LITTER]
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return f"holds {found[0]}{more}" if found else ""


def unlisted(folder: Path, listed: Iterable[str]) -> str:
    """What in a folder, and in the folders in it, is none of the `listed` files, as `Wrote` tells.

    Args:
        listed: paths of files below `folder`, with "/" between their parts. A folder that stands
            where one of them should be holds nothing that is listed.
    """
    below: dict[str, list[str]] = {}
    for relative in listed:
        first, _, rest = relative.partition("/")
        below.setdefault(first, []).extend([rest] if rest else [])
    found = strangers(folder, below)
    for name, inside in below.items():
        if found:
            break
        if (folder / name).is_dir():
            found = f"{foreign} in {name}" if (foreign := unlisted(folder / name, inside)) else ""
        elif inside and (folder / name).exists():
            found = f"holds {name}, a file"
    return found


def sha256_file(path: Path | str) -> str:
    """Hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _create(path: Path) -> int:
    """Make an empty file; returns the mode that the kernel gave it."""
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return stat.S_IMODE(os.fstat(handle).st_mode)
    finally:
        os.close(handle)


def _finish(path: Path, mode: int) -> None:
    """Give a written file its mode, and its bytes to the disk."""
    # Some writers (safetensors) put a file of their own, of mode 0600, in the place of ours.
    path.chmod(mode)
    with path.open("r+b") as stream:  # Windows syncs no handle that was opened for reading
        os.fsync(stream.fileno())


def _check_replaced(path: Path, force: bool, wrote: Wrote, inputs: Sequence[Path | str]) -> None:
    """Raise PrunionError unless a command may replace what is at `path`."""
    for source in inputs:
        if Path(source).resolve().is_relative_to(path.resolve()):
            what = "is" if Path(source).resolve() == path.resolve() else "holds"
            raise PrunionError(f"{path} {what} what this command reads: choose another place")
    if not force:
        raise PrunionError(f"{path} already exists: choose another place or pass --force")
    if foreign := wrote(path):
        raise PrunionError(
            f"{path} {foreign}: --force replaces only what the same command wrote, so choose "
            "another place, or move that away yourself"
        )


def _check_writable(path: Path, within: bool) -> None:
    """Raise OutputError unless `path` can be made, replaced, or written into if `within`."""
    place = path if within else _existing(path.absolute().parent)
    if not place.is_dir():
        raise OutputError(f"{path} cannot be made: {place} is a file, choose another place")
    if not os.access(place, os.W_OK | os.X_OK):
        what = "replaced" if path.exists() else "made"
        told = "" if within else f" cannot be {what}: {place}"
        raise OutputError(f"{path}{told} may not be written, choose another place")


def _refuse_bundle(path: Path) -> None:
    """A bundle's files are fixed: with one more it is none that `export` would replace."""
    above = Path(os.path.realpath(path.parent))
    for folder in (above, *above.parents):
        if all(os.path.isfile(folder / name) for name in BUNDLE):  # never raises, unlike Path
            raise PrunionError(
                f"{path} is inside the bundle {folder}, whose files are fixed: choose another place"
            )


def _refuse_lost_link(path: Path) -> None:
    """What somebody has laid there is no room for a file, though nothing can be read at its end."""
    if path.is_symlink() and not path.exists():
        raise OutputError(
            f"{path} is a link to {os.readlink(path)}, where nothing is: remove the link, or "
            "choose another place"
        )


def _existing(path: Path) -> Path:
    """`path`, or the nearest folder above it that exists."""
    return next((x for x in (path, *path.absolute().parents) if x.exists()), Path())


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
