"""Files out of tar archives that nobody vouches for: the wanted ones, and nothing else.

What is wanted is known beforehand, so no member decides where it is written, and what an archive
holds besides is passed over unread. Streams are read from front to back, tars within tars too.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from prunion.runtime.base import (
    BoundedTar,
    read_json,
    reason_of,
    safe_relative_path,
    shown,
    write_json,
)
from prunion.runtime.errors import DataError, InputError, OutputError

__all__ = ["tars_in", "unpack"]

MOST_MEMBERS = 8_000_000  # the Decathlon has 1.7 million images
DEEPEST = 2  # tars within tars
TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
END = 1 << 20  # bytes at either end of an archive; the last of a gzip have its checksum

log = logging.getLogger(__name__)


def tars_in(folder: Path) -> list[Path]:
    """The archives in a folder by their names, sorted; none that macOS puts beside them."""
    named = (x for x in folder.iterdir() if x.name.lower().endswith(TARS) and _is_shown(x.name))
    return sorted(x for x in named if x.is_file())


def unpack(
    archives: Iterable[Path],
    wanted: Mapping[str, Path],
    most_bytes: int,
    *,
    suffix: bool = False,
    record: Path | None = None,
) -> set[str]:
    """Write the members called `wanted` to the paths it gives; a file that is there is left.

    Args:
        archives: tars, compressed or not; their own members that end in .tar are looked into.
        wanted: member's name, a plain relative path, to the file that it becomes.
        most_bytes: of one member.
        suffix: members may lie in a folder: the end of their path is what is looked for.
        record: file of what tells the archives that were read from others of their names, so that
            nothing that is there is taken for another archive's.

    Returns:
        The wanted names that were found or were there already.

    Raises:
        DataError: an archive is damaged, or a wanted member is a link, or larger than `most_bytes`.
        InputError: what is there was unpacked from another archive, by the record.
        OutputError: a file cannot be written, as on a full disk.
    """
    archives = list(archives)
    for name in wanted:
        if not safe_relative_path(name):
            raise DataError(f"the path {shown(name)} leads out of its folder: correct the file")
    found = {name for name, path in wanted.items() if path.is_file()}
    left = {name: path for name, path in wanted.items() if name not in found}
    known = _known(record, archives, unpacked=bool(found))
    # Of what an earlier version unpacked nobody knows where it is from.
    new = record is not None and (record.is_file() or not found)
    for archive in archives:
        if not left:
            break
        try:
            if record is not None and new and archive.name not in known:
                known[archive.name] = _mark(archive)
                write_json(record, known)
            with archive.open("rb") as stream:
                _read(stream, str(archive), left, most_bytes, 1, by_end=suffix)
        except OutputError:
            raise
        except (tarfile.TarError, EOFError, OSError, ValueError, RecursionError) as exc:
            raise DataError(
                f"{archive} cannot be read ({reason_of(exc)}): download it again"
            ) from exc
    return found | {name for name in wanted if name not in left}


def _known(record: Path | None, archives: list[Path], *, unpacked: bool) -> dict[str, str]:
    """What the record holds. Raises InputError where an archive of a name in it is another one."""
    if record is None:
        return {}
    known: dict[str, str] = read_json(record, InputError) if record.is_file() else {}
    place, here = record.parent, {x.name: x for x in archives}
    for name, archive in here.items():
        if name in known and _mark(archive) != known[name]:
            raise InputError(
                f"{place} was unpacked from another {name} than {archive} (by size and SHA-256 was "
                f"{known[name]}, is {_mark(archive)}): choose another place with -o, or remove "
                f"{place}"
            )
    gone = [name for name in known if name not in here]
    if unpacked and (gone or not known):
        of = f"from {', '.join(gone)}, which is not here" if gone else "by an earlier version"
        log.warning("%s was unpacked %s: taken as these archives'", place, of)
    return known


def _mark(archive: Path) -> str:
    """Size and digest of both ends: an archive of ImageNet is too long to be read for this."""
    digest, size = hashlib.sha256(), archive.stat().st_size
    with archive.open("rb") as stream:
        digest.update(stream.read(END))
        stream.seek(max(0, size - END))
        digest.update(stream.read(END))
    return f"{size:,} bytes, {digest.hexdigest()[:12]}"


def _read(
    stream: IO[bytes],
    place: str,
    left: dict[str, Path],
    most_bytes: int,
    depth: int,
    *,
    by_end: bool,
) -> None:
    """Take the members that are left to find; what was found is taken out of `left`."""
    with BoundedTar.open(fileobj=stream, mode="r|*") as tar:
        for count in range(MOST_MEMBERS + 1):
            member = tar.next() if left else None
            if member is None:
                return
            if count == MOST_MEMBERS:
                raise DataError(f"{place} has over {MOST_MEMBERS:,} members: no archive of images")
            name = member.name.removeprefix("./")
            inside = name.endswith(".tar") and _is_shown(name)
            if inside and member.isreg() and depth < DEEPEST:
                inner = tar.extractfile(member)
                assert inner is not None
                _read(inner, f"{place}: {name}", left, most_bytes, depth + 1, by_end=by_end)
                continue
            key = _wanted(name, left, by_end=by_end)
            if key is None:
                continue
            if not member.isreg() or member.issparse():
                raise DataError(f"{place}: {shown(name)} is no plain file: put the file there")
            if member.size > most_bytes:
                raise DataError(
                    f"{place}: {shown(name)} has {member.size:,} bytes, over {most_bytes:,}: what "
                    "is it?"
                )
            source = tar.extractfile(member)
            assert source is not None
            target = left.pop(key)
            _write(source, target)


def _is_shown(name: str) -> bool:
    """Whether a file is not hidden: macOS writes `._NAME` beside NAME, of another kind."""
    return not name.rpartition("/")[2].startswith(".")


def _wanted(name: str, left: Mapping[str, Path], *, by_end: bool) -> str | None:
    if name in left:
        return name
    parts = name.split("/")
    for start in range(1, len(parts)) if by_end else ():
        if (end := "/".join(parts[start:])) in left:
            return end
    return None


def _write(source: IO[bytes], path: Path) -> None:
    """Whole or not at all, but not safe from a power cut: a million images must not wait for it."""
    half = path.with_name(f".{path.name}.{os.getpid()}.part")  # another process may unpack too
    try:
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            target = half.open("wb")
        with target:
            while block := source.read(1 << 20):
                with _writing(path):
                    target.write(block)
            with _writing(path):
                target.flush()
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """What goes wrong here is no archive's fault. Raises OutputError for it."""
    try:
        yield
    except OSError as exc:
        raise OutputError(
            f"{path} cannot be written ({reason_of(exc)}): choose another place with -o"
        ) from None
