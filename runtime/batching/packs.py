"""Packs of a folder, read when they are first asked for."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from prunion.runtime.batching.folder import (
    PackFolder,
    RefusedPackError,
    Stamp,
    Sums,
    UnreadError,
    is_own_fault,
    is_settled,
)
from prunion.runtime.batching.statistics import Statistics
from prunion.runtime.bundle import Pack
from prunion.runtime.errors import PrunionError
from prunion.runtime.model import LiveDomain, Model

__all__ = ["PackCache", "pack_bytes"]

LOOK_AGAIN = 1.0  # seconds for which a file is taken to be what it was
logger = logging.getLogger("prunion.serve")


def pack_bytes(pack: Pack) -> int:
    """Memory that a pack's arrays take."""
    arrays = (pack.bank, pack.head_weight, pack.head_bias, pack.switches, *pack.own.values())
    return sum(array.nbytes for array in arrays)


@dataclass
class _Held:
    domain: LiveDomain
    digest: str
    stamp: Stamp
    sums: Stamp | None  # of those that allowed it
    bytes: int
    looked: float


@dataclass(frozen=True)
class _Refusal:
    stamp: Stamp
    sums: Stamp | None
    reason: str
    settled: bool  # whether a file that was mended since has another stamp


class PackCache:
    """Domains of a folder, least recently used first to go when they take more than `limit` bytes.

    Thread-safe. Those named in `stay` are read once and never leave. A file that was replaced
    becomes another domain of that name; requests that hold the former one finish with it. Sums that
    come after a pack was read hold for it too.
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
        self._sums: Sums | None = None
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self._lock = threading.Lock()
        self._reading: dict[str, threading.Lock] = {}
        self._refused: dict[str, _Refusal] = {}

    def __len__(self) -> int:
        return len(self._held)

    def resident(self, name: str) -> LiveDomain | None:
        """A domain that is in memory and unchanged, as are the sums; None if `read` must look."""
        now = time.monotonic()
        with self._lock:
            held = self._held.get(name)
            if held is None:
                return None
            if now - held.looked > LOOK_AGAIN:
                if not self._is_same(name, held):
                    return None
                held.looked = now
            self._held.move_to_end(name)
            return held.domain

    def refused(self, name: str) -> str:
        """Why the pack could not be taken when it was last read; "" if it was, or is another now.

        A pack that nobody has asked for is not known to be any worse than others.
        """
        found = self._refused.get(name)
        return found.reason if found is not None and self._stands(name, found) else ""

    def read(self, name: str) -> LiveDomain | None:
        """A domain, read from its file if need be; None if there is no such file.

        Raises RefusedPackError for a pack that cannot be taken, UnreadError for one that cannot be
        read now. Two requests for one domain read it once, and a refused one is not read again,
        unless it was written so lately that one in its place could not be told from it.
        """
        with self._lock:
            turn = self._reading.setdefault(name, threading.Lock())
        try:
            with turn:
                known = self._refused.get(name)
                if known is not None and known.settled and self._stands(name, known):
                    raise RefusedPackError(known.reason)
                return self.resident(name) or self._read(name)
        finally:
            with self._lock:
                if self._reading.get(name) is turn and not turn.locked():
                    del self._reading[name]

    def forget(self, name: str) -> bool:
        """Let a domain go, to be read again when it is asked for; False if it was not there."""
        self._refused.pop(name, None)
        with self._lock:
            held = self._held.pop(name, None)
            if held is not None:
                self.bytes -= held.bytes
        if held is not None:
            self.model.release(held.domain)
        return held is not None

    def _stands(self, name: str, refusal: _Refusal) -> bool:
        """Whether a refusal still holds, for all that can be told without reading the file."""
        try:
            found = self.folder.stamp(name), self.folder.sums_stamp()
        except UnreadError:
            return True
        # Else who waits for it to be ready, and asks no sooner, would wait for ever.
        known = refusal.settled or not is_settled(refusal.stamp, refusal.sums)
        stands = known and found == (refusal.stamp, refusal.sums)
        if not stands:
            self._refused.pop(name, None)
        return stands

    def _is_same(self, name: str, held: _Held) -> bool:
        """Whether the pack and the sums are what they were.

        They are taken to be, with a warning, as long as the system does not say.
        """
        try:
            found = self.folder.stamp(name), self.folder.sums_stamp()
        except UnreadError as exc:
            logger.warning("%s: %r is served as it was", exc, name)
            return True
        return found == (held.stamp, held.sums)

    def _read(self, name: str) -> LiveDomain | None:
        # Taken before the bytes: if the file changes in between, the next look sees it.
        stamp = self.folder.stamp(name)
        if stamp is None:
            self.forget(name)
            return None
        sums = self._sums = self.folder.sums(self._sums)
        settled = is_settled(stamp, sums.stamp)
        held, begun = self._held.get(name), time.perf_counter_ns()
        try:
            if held is not None and held.stamp == stamp:
                return self._confirm(name, held, sums)
            pack, digest = self.folder.read_hashed(name, sums)
            domain = self.model.admit(pack)
        except UnreadError:
            self.forget(name)
            raise
        except PrunionError as exc:
            self.forget(name)  # what the file was is not what it is
            if is_own_fault(exc):
                self._refused[name] = _Refusal(stamp, sums.stamp, str(exc), settled)
            raise RefusedPackError(str(exc)) from None
        self._refused.pop(name, None)  # its stamp may be that of the refused one
        spent = time.perf_counter_ns() - begun
        self.statistics.record_pack(spent)
        logger.info("read the pack of %r in %.1f ms", name, spent / 1e6)
        now = time.monotonic()
        self._keep(name, _Held(domain, digest, stamp, sums.stamp, pack_bytes(domain.pack), now))
        return domain

    def _confirm(self, name: str, held: _Held, sums: Sums) -> LiveDomain:
        """A domain of which only the sums have changed. Raises BundleError if they refuse it."""
        if not sums.may_come(name):
            sums.check(name, held.digest)
            held.sums = sums.stamp
        held.looked = time.monotonic()
        return held.domain

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
