"""Packs in a folder that was named at start, read when they are first asked for."""

from __future__ import annotations

import errno
import hashlib
import logging
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from prunion.runtime.batching.statistics import Statistics
from prunion.runtime.bundle import Pack, read_pack
from prunion.runtime.errors import BundleError, PrunionError
from prunion.runtime.model import LiveDomain, Model

__all__ = ["PackCache", "PackFolder", "Stamp", "UnreadError", "pack_bytes"]

SUFFIX = ".safetensors"
SUMS = "SHA256SUMS"
MAX_BYTES = 256 << 20
LOOK_AGAIN = 1.0  # seconds for which a file is taken to be what it was
NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)
SUM_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")
Stamp = tuple[int, int, int]
logger = logging.getLogger("prunion.serve")


class UnreadError(BundleError):
    """The system did not give a pack's bytes; it may the next time."""


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
        files = [p.name for p in self.path.iterdir() if p.suffix == SUFFIX]
        return sorted(name.removesuffix(SUFFIX) for name in files if not name.startswith("."))

    def stamp(self, name: str) -> Stamp | None:
        """What changes when the file is replaced or written over; None if there is none.

        Raises UnreadError where the system does not say: a file may well be there.
        """
        return _stamp(self.path / f"{name}{SUFFIX}") if self.plain(name) else None

    def sums_stamp(self) -> Stamp | None:
        """The same of the folder's `SHA256SUMS`. Raises UnreadError."""
        return _stamp(self.path / SUMS)

    def read(self, name: str) -> Pack:
        """The pack of a domain.

        Raises BundleError, which names the file but not its folder; UnreadError where the bytes
        could not be had, which says nothing of them.
        """
        file = self.path / f"{name}{SUFFIX}"
        if not self.plain(name):
            raise BundleError(f"{name!r} is no file's name: a folder of packs cannot hold it")
        try:
            # A link out of the folder would read any file of the machine.
            if not file.resolve().is_relative_to(self.path.resolve()):
                raise BundleError(f"{file.name} lies outside of the folder of packs: copy it there")
            if file.stat().st_size > MAX_BYTES:
                raise BundleError(f"{file.name} is larger than {MAX_BYTES >> 20} MiB: no pack")
            data = file.read_bytes()
        except OSError as exc:
            raise UnreadError(f"{file.name} cannot be read ({exc.strerror})") from None
        self._check_hash(file.name, data)
        pack = read_pack(Path(file.name), data)
        if pack.name != name:
            raise BundleError(
                f"{file.name} holds the domain {pack.name!r}: rename the file to its domain"
            )
        return pack

    @staticmethod
    def plain(name: str) -> bool:
        """Whether a domain's name can be a file's here: no folder, nothing hidden."""
        return 0 < len(name) < 200 and not name.startswith(".") and not set(name) & set("/\\\0:")

    def _check_hash(self, file: str, data: bytes) -> None:
        try:
            text = (self.path / SUMS).read_text("utf-8")
        except FileNotFoundError:
            return
        except OSError as exc:
            raise UnreadError(f"{SUMS} cannot be read ({exc.strerror})") from None
        except ValueError as exc:
            raise BundleError(f"{SUMS} cannot be read ({exc}): write it again") from None
        sums = {m[2]: m[1] for line in text.splitlines() if (m := SUM_LINE.fullmatch(line))}
        if sums.get(file) != hashlib.sha256(data).hexdigest():
            what = "differs from" if file in sums else "is not in"
            raise BundleError(f"{file} {what} {SUMS}: copy the pack again, or write the sums again")


def _stamp(path: Path) -> Stamp | None:
    try:
        found = path.stat()
    except ValueError:
        return None
    except OSError as exc:
        if exc.errno in NO_FILE:
            return None
        raise UnreadError(f"{path.name} cannot be read ({exc.strerror})") from None
    return found.st_ino, found.st_size, found.st_mtime_ns


def pack_bytes(pack: Pack) -> int:
    """Memory that a pack's arrays take."""
    arrays = (pack.bank, pack.head_weight, pack.head_bias, pack.switches, *pack.own.values())
    return sum(array.nbytes for array in arrays)


@dataclass
class _Held:
    domain: LiveDomain
    stamp: Stamp | None
    bytes: int
    looked: float


class PackCache:
    """Domains of a folder, least recently used first to go when they take more than `limit` bytes.

    Thread-safe. Those named in `stay` are read once and never leave. A file that was replaced
    becomes another domain of that name; requests that hold the former one finish with it.
    """

    def __init__(
        self,
        folder: PackFolder,
        model: Model,
        limit: int,
        stay: Iterable[str] = (),
        statistics: Statistics | None = None,
    ) -> None:
        self.folder = folder
        self.model = model
        self.limit = limit
        self.stay = frozenset(stay)
        self.statistics = statistics or Statistics()
        self.bytes = 0
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self._lock = threading.Lock()
        self._reading: dict[str, threading.Lock] = {}

    def __len__(self) -> int:
        return len(self._held)

    def resident(self, name: str) -> LiveDomain | None:
        """A domain that is in memory and whose file is unchanged; None if it must be read."""
        now = time.monotonic()
        with self._lock:
            held = self._held.get(name)
            if held is None:
                return None
            if now - held.looked > LOOK_AGAIN:
                if self._stamp_or(held.stamp, name) != held.stamp:
                    return None
                held.looked = now
            self._held.move_to_end(name)
            return held.domain

    def read(self, name: str) -> LiveDomain | None:
        """A domain, read from its file if need be; None if there is no such file.

        Raises BundleError. Two requests for one domain read it once.
        """
        with self._lock:
            turn = self._reading.setdefault(name, threading.Lock())
        try:
            with turn:
                return self.resident(name) or self._read(name)
        finally:
            with self._lock:
                if self._reading.get(name) is turn and not turn.locked():
                    del self._reading[name]

    def forget(self, name: str) -> bool:
        """Let a domain go, to be read again when it is asked for; False if it was not there."""
        with self._lock:
            held = self._held.pop(name, None)
            if held is not None:
                self.bytes -= held.bytes
        if held is not None:
            self.model.release(held.domain)
        return held is not None

    def _stamp_or(self, before: Stamp | None, name: str) -> Stamp | None:
        """The file's stamp; what it was before, with a warning, as long as it cannot be had."""
        try:
            return self.folder.stamp(name)
        except UnreadError as exc:
            logger.warning("%s: %r is served as it was", exc, name)
            return before

    def _read(self, name: str) -> LiveDomain | None:
        # Taken before the bytes: if the file changes in between, the next look sees it.
        stamp = self.folder.stamp(name)
        if stamp is None:
            self.forget(name)
            return None
        begun = time.perf_counter_ns()
        try:
            domain = self.model.admit(self.folder.read(name))
        except PrunionError:
            self.forget(name)  # what the file was is not what it is
            raise
        spent = time.perf_counter_ns() - begun
        self.statistics.record_pack(spent)
        logger.info("read the pack of %r in %.1f ms", name, spent / 1e6)
        self._keep(name, _Held(domain, stamp, pack_bytes(domain.pack), time.monotonic()))
        return domain

    def _keep(self, name: str, new: _Held) -> None:
        gone: list[_Held] = []
        with self._lock:
            old = self._held.pop(name, None)
            self._held[name] = new
            self.bytes += new.bytes
            if old is not None:
                gone.append(old)
                self.bytes -= old.bytes
            leaving = [n for n in self._held if n not in self.stay and n != name]
            for other in leaving:
                if self.bytes <= self.limit:
                    break
                gone.append(self._held.pop(other))
                self.bytes -= gone[-1].bytes
        for held in gone:
            self.model.release(held.domain)
