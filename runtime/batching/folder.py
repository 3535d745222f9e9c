"""A folder of packs that was named at start: what others lay there is checked before it is used."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from prunion.runtime.bundle import HeldFileError, Pack, read_pack
from prunion.runtime.errors import BundleError, InputError

__all__ = [
    "PackFolder",
    "RefusedPackError",
    "Stamp",
    "Sums",
    "UnreadError",
    "is_own_fault",
    "is_settled",
]

SUFFIX = ".safetensors"
SUMS = "SHA256SUMS"
MAX_BYTES = 256 << 20
MAX_SUMS = 64 << 20
WRITING = 1_000_000_000  # nanoseconds for which sums that were just written may lack lines
SETTLED = 2_000_000_000  # nanoseconds after which another change shows in the file's times
NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)
SUM_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")


class Stamp(NamedTuple):
    """What changes when a file is replaced, moved or written over, even where its time is kept.

    Attributes:
        modified, changed: nanoseconds; the first can be set back, as by `rsync -t`.
        link, link_changed: of what stands at the path itself, which may be a link to the file.
    """

    inode: int
    size: int
    modified: int
    changed: int
    link: int
    link_changed: int


class RefusedPackError(BundleError):
    """A pack of the server's own cannot be taken, so nobody who asks for its domain is answered."""


class UnreadError(BundleError):
    """The system did not give a pack's bytes; it may the next time."""


@dataclass(frozen=True)
class Sums:
    """What a folder's `SHA256SUMS` says.

    Attributes:
        stamp: the file's; None where there is none, and packs need not be listed.
        hashes: by file name.
        fault: why it cannot be used, so that no pack can be taken.
        settled: whether a change since it was read would show in its stamp.
    """

    stamp: Stamp | None = None
    hashes: Mapping[str, str] = field(default_factory=dict)
    fault: str = ""
    settled: bool = field(default=True, compare=False)

    def check(self, name: str, digest: str) -> None:
        """Raise BundleError unless the pack of a domain may have this hash."""
        file = f"{name}{SUFFIX}"
        if self.stamp is None:
            return
        if self.fault:
            raise BundleError(self.fault)
        if self.hashes.get(file) != digest:
            what = "differs from" if file in self.hashes else "is not in"
            raise BundleError(f"{file} {what} {SUMS}: copy the pack again, or write the sums again")

    def may_come(self, name: str) -> bool:
        """Whether a pack's line may be on its way: `sha256sum … > SHA256SUMS` writes them singly.

        A pack that is served does not go for that.
        """
        listed = f"{name}{SUFFIX}" in self.hashes
        return self.stamp is not None and not listed and _age(self.stamp) < WRITING


@dataclass(frozen=True)
class PackFolder:
    """A folder of `NAME.safetensors`, each the pack of the domain NAME.

    If it holds a `SHA256SUMS` (as `sha256sum *.safetensors` writes it), a pack must be listed
    there with the hash that its bytes have.
    """

    path: Path

    def names(self) -> list[str]:
        """The domains there are files for.

        Raises OSError where the folder cannot be listed now, which is not to be taken for empty.
        """
        # Of a link that leads nowhere it is for `read` to tell.
        files = [p.name for p in self.path.iterdir() if p.suffix == SUFFIX and not os.path.isdir(p)]
        return sorted(name.removesuffix(SUFFIX) for name in files if not name.startswith("."))

    def stamp(self, name: str) -> Stamp | None:
        """What changes when the file is replaced or written over; None if there is none.

        Raises UnreadError where the system does not say: a file may well be there.
        """
        return _stamp(self.path / f"{name}{SUFFIX}") if self.plain(name) else None

    def sums_stamp(self) -> Stamp | None:
        """The same of the folder's `SHA256SUMS`. Raises UnreadError."""
        file = self.path / SUMS
        found = _stamp(file)
        if found is None and os.path.islink(file):
            # Whoever laid the link wants packs checked: that its end is lost must not end that.
            raise UnreadError(f"{SUMS} is a link to where nothing is: remove it, or lay sums there")
        return found

    def sums(self, known: Sums | None = None) -> Sums:
        """What `SHA256SUMS` says now; `known` if the file is the same as then.

        Raises UnreadError.
        """
        # Taken before the bytes: if the file changes in between, the next look sees it.
        stamp = self.sums_stamp()
        if stamp is None:
            return Sums()
        if known is not None and known.stamp == stamp and known.settled:
            return known
        settled = is_settled(stamp)
        try:
            text = _read(self.path / SUMS, MAX_SUMS).decode()
        except UnreadError:
            raise
        except BundleError as exc:
            return Sums(stamp, fault=str(exc), settled=settled)
        except ValueError as exc:
            fault = f"{SUMS} cannot be read ({exc}): write it again"
            return Sums(stamp, fault=fault, settled=settled)
        found = (SUM_LINE.fullmatch(line) for line in text.splitlines())
        return Sums(stamp, {m[2]: m[1] for m in found if m}, settled=settled)

    def read(self, name: str) -> Pack:
        """The pack of a domain.

        Raises BundleError, which names the file but not its folder; UnreadError where the bytes
        could not be had, which says nothing of them.
        """
        return self.read_hashed(name, self.sums())[0]

    def read_hashed(self, name: str, sums: Sums) -> tuple[Pack, str]:
        """The pack of a domain, which `sums` allow, and the hash of its bytes. Raises as `read`."""
        file = self.path / f"{name}{SUFFIX}"
        if not self.plain(name):
            raise BundleError(f"{name!r} is no file's name: a folder of packs cannot hold it")
        try:
            # A link out of the folder would read any file of the machine.
            inside = file.resolve().is_relative_to(self.path.resolve())
        except OSError as exc:
            raise UnreadError(f"{file.name} cannot be read ({exc.strerror})") from None
        if not inside:
            raise BundleError(f"{file.name} lies outside of the folder of packs: copy it there")
        data = _read(file, MAX_BYTES)
        digest = hashlib.sha256(data).hexdigest()
        sums.check(name, digest)
        pack = read_pack(Path(file.name), data)
        if pack.name != name:
            raise BundleError(
                f"{file.name} holds the domain {pack.name!r}: rename the file to its domain"
            )
        return pack, digest

    @staticmethod
    def plain(name: str) -> bool:
        """Whether a domain's name can be a file's here: no folder, nothing hidden."""
        return 0 < len(name) < 200 and not name.startswith(".") and not set(name) & set("/\\\0:")


def is_settled(*stamps: Stamp | None) -> bool:
    """Whether any change from now on shows in these: the times of files move on in steps."""
    now = time.time_ns()
    times = [x for s in stamps if s is not None for x in (s.modified, s.changed, s.link_changed)]
    return all(abs(now - x) >= SETTLED for x in times)


def is_own_fault(error: Exception) -> bool:
    """Whether a pack is refused for what it is, so that it will be until its file is another.

    What the machine or the bundle's own files lack may be there the next time.
    """
    passing = isinstance(error, (UnreadError, HeldFileError))
    return isinstance(error, (BundleError, InputError)) and not passing


def _stamp(path: Path) -> Stamp | None:
    try:
        found, link = path.stat(), path.lstat()
    except ValueError:
        return None
    except OSError as exc:
        if exc.errno in NO_FILE:
            return None
        raise UnreadError(f"{path.name} cannot be read ({exc.strerror})") from None
    return Stamp(
        found.st_ino,
        found.st_size,
        found.st_mtime_ns,
        found.st_ctime_ns,
        link.st_ino,
        link.st_ctime_ns,
    )


def _age(stamp: Stamp) -> float:
    """Nanoseconds since a file was written; none can tell where its time is still to come."""
    age = time.time_ns() - stamp.modified
    return age if age >= 0 else float("inf")


def _read(path: Path, most: int) -> bytes:
    """A regular file's bytes. Raises BundleError for anything else, UnreadError."""
    try:
        # Looked at first, as to open some devices does something already.
        regular, data = stat.S_ISREG(path.stat().st_mode), b""
        if regular:
            # Another may lie there by now, and to open a pipe waits for whoever writes into it.
            with open(path, "rb", opener=_open_at_once) as file:
                found = os.fstat(file.fileno())
                regular = stat.S_ISREG(found.st_mode)
                if found.st_size > most:
                    raise BundleError(f"{path.name} is larger than {most >> 20} MiB: remove it")
                data = file.read(found.st_size) if regular else b""
    except OSError as exc:
        raise UnreadError(f"{path.name} cannot be read ({exc.strerror})") from None
    if not regular:
        raise BundleError(f"{path.name} is a folder, a pipe or a device: lay a file there")
    return data


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # Windows has none
