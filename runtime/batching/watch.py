"""A folder that is looked at every second: packs that appear are served, those that go are not."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

from prunion.runtime.batching.catalogue import Catalogue
from prunion.runtime.batching.folder import (
    PackFolder,
    Stamp,
    Sums,
    UnreadError,
    is_own_fault,
    is_settled,
)
from prunion.runtime.errors import BundleError, PrunionError

__all__ = ["Watcher"]

EVERY = 1.0
logger = logging.getLogger("prunion.serve")


@dataclass(frozen=True)
class _Taken:
    """A pack that was taken: its file's stamp, the hash of its bytes, and the sums that have it."""

    stamp: Stamp
    digest: str
    sums: Stamp | None


class Watcher:
    """Follows one folder for a catalogue, which may be exchanged meanwhile.

    A pack that cannot be taken is logged, left alone, and tried again when its file or the sums
    change, or at the next look where it could not be read. Sums that come after a pack hold for it
    too: one that they do not have goes. Only a folder that was listed can lack a pack: as long as
    it cannot be, or the sums cannot be read, all of them stay.
    """

    def __init__(self, folder: PackFolder, catalogue: Catalogue) -> None:
        self.folder = folder
        self.catalogue = catalogue
        self._sums: Sums | None = None
        self._taken: dict[str, _Taken] = {}
        self._refused: dict[str, tuple[Stamp, Stamp | None]] = {}
        self._said: dict[str, str] = {}
        self._looking = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="watch", daemon=True)

    def start(self) -> None:
        """Take what is there now, then follow."""
        self.look()
        self._thread.start()

    def close(self) -> None:
        """Follow no more."""
        self._stop.set()

    def take(self, catalogue: Catalogue) -> None:
        """Follow for another catalogue, which gets all packs but those that a client unloaded.

        Raises BundleError where the folder cannot be listed, or a pack that is served not be read,
        and then follows as before: the other catalogue would lack what is served now.
        """
        with self._looking:
            before = self.catalogue
            served = set(self.catalogue.watched)
            names: list[str] | None = None
            try:
                names = self.folder.names()
            except OSError as exc:
                if served:
                    raise BundleError(f"{self._unlisted(exc)}: try again") from None
            self.catalogue = catalogue
            self._taken = {x: stamp for x, stamp in self._taken.items() if x not in served}
            self._refused.clear()
            self._said.clear()
            if names is not None:  # else what clients unloaded would be forgotten
                lost = self._look(names) & served
                if lost:
                    self.catalogue = before
                    self._taken = {x: y for x, y in self._taken.items() if x not in served}
                    raise BundleError(f"the pack of {min(lost)!r} cannot be read now: try again")

    def look(self) -> None:
        """Bring the catalogue up to what the folder holds."""
        with self._looking:
            try:
                names = self.folder.names()
            except OSError as exc:
                self._say("", f"{self._unlisted(exc)}: what is served of it stays")
                return
            self._look(names)

    def _look(self, names: Sequence[str]) -> set[str]:
        """Take what changed; the packs that could not be read."""
        unread: set[str] = set()
        sums = self._read_sums()
        for name in names:
            if not self._take_pack(name, sums):
                unread.add(name)
        for name in set(self.catalogue.watched) - set(names):
            self._drop(name)
        for known in (self._taken, self._refused, self._said):
            for name in known.keys() - {*names, ""}:
                del known[name]
        return unread

    def _take_pack(self, name: str, sums: Sums | None) -> bool:
        """Take a pack if it changed, or say why not; False if that could not be read."""
        # Taken before the bytes: if a file changes in between, the next look sees it.
        stamp, settled = None, False
        try:
            stamp = self.folder.stamp(name)
            taken = self._taken.get(name)
            same = stamp is None or (taken is not None and taken.stamp == stamp)
            if sums is None:
                return same
            settled = is_settled(stamp, sums.stamp)
            if stamp is not None and self._refused.get(name) == (stamp, sums.stamp):
                self._drop_unlisted(name, sums)
                return True
            if same:
                self._confirm(name, sums)
            elif stamp is not None:
                pack, digest = self.folder.read_hashed(name, sums)
                self.catalogue.watch(pack)
                self._taken[name] = _Taken(stamp, digest, sums.stamp)
                logger.info("serving %r", name)
        except PrunionError as exc:
            self._say(name, str(exc))
            if isinstance(exc, UnreadError):
                return False
            if sums is not None:
                if stamp is not None and settled and is_own_fault(exc):
                    self._refused[name] = stamp, sums.stamp
                self._drop_unlisted(name, sums)
            return True
        self._said.pop(name, None)
        return True

    def _read_sums(self) -> Sums | None:
        """The folder's sums; None, which is said, where they cannot be read now."""
        try:
            self._sums = self.folder.sums(self._sums)
        except UnreadError as exc:
            self._say("", f"{exc}; meanwhile no pack is taken, and what is served stays")
            return None
        self._said.pop("", None)
        return self._sums

    def _confirm(self, name: str, sums: Sums) -> None:
        """Hold what is served of a pack to sums that came since. Raises BundleError."""
        taken = self._taken.get(name)
        if taken is None or taken.sums == sums.stamp or sums.may_come(name):
            return
        if name in self.catalogue.watched:  # else a client unloaded it, which is to stay so
            sums.check(name, taken.digest)
        self._taken[name] = replace(taken, sums=sums.stamp)

    def _drop_unlisted(self, name: str, sums: Sums) -> None:
        """Let go what is served of a pack, if sums that came since do not have it."""
        try:
            self._confirm(name, sums)
        except BundleError:
            del self._taken[name]
            self._drop(name)

    def _drop(self, name: str) -> None:
        stays = self.catalogue.unwatch(name)
        logger.info("serving %r %s", name, "as before its pack came" if stays else "no more")

    def _say(self, name: str, reason: str) -> None:
        """Log why a pack, or the folder, is not served; once as long as it is the same."""
        if self._said.get(name) != reason:
            self._said[name] = reason
            logger.warning("%s", reason)

    def _unlisted(self, exc: OSError) -> str:
        return f"{self.folder.path.name} cannot be listed ({exc.strerror})"

    def _follow(self) -> None:
        while not self._stop.wait(EVERY):
            try:
                self.look()
            except Exception:  # whatever it is, the packs that are served go on being served
                logger.exception("cannot follow %s", self.folder.path.name)
