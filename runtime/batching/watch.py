"""A folder that is looked at every second: packs that appear are served, those that go are not."""

from __future__ import annotations

import logging
import threading

from prunion.runtime.batching.catalogue import Catalogue
from prunion.runtime.batching.packs import PackFolder, Stamp
from prunion.runtime.errors import PrunionError

__all__ = ["Watcher"]

EVERY = 1.0
logger = logging.getLogger("prunion.serve")


class Watcher:
    """Follows one folder for a catalogue, which may be exchanged meanwhile.

    A pack that cannot be taken is logged, left alone, and tried again when its file changes.
    """

    def __init__(self, folder: PackFolder, catalogue: Catalogue) -> None:
        self.folder = folder
        self.catalogue = catalogue
        self._seen: dict[str, Stamp] = {}
        self._served: set[str] = set()
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
        """Follow for another catalogue, which gets all packs there are."""
        self.catalogue = catalogue
        self._seen.clear()
        self._served.clear()
        self.look()

    def look(self) -> None:
        """Bring the catalogue up to what the folder holds."""
        catalogue, now = self.catalogue, {}
        for name in self.folder.names():
            stamp = self.folder.stamp(name)
            if stamp is not None:
                now[name] = stamp
        for name, stamp in now.items():
            if self._seen.get(name) == stamp:
                continue
            try:
                catalogue.put(catalogue.model.admit(self.folder.read(name)))
                self._served.add(name)
                logger.info("serving %r", name)
            except PrunionError as exc:
                logger.warning("%s", exc)
        for name in self._seen.keys() - now.keys():
            if name in self._served:
                self._served.discard(name)
                try:
                    catalogue.unload(name)
                    logger.info("serving %r no more", name)
                except PrunionError as exc:
                    logger.warning("%s", exc)
        self._seen = now

    def _follow(self) -> None:
        while not self._stop.wait(EVERY):
            try:
                self.look()
            except Exception:  # whatever it is, the packs that are served go on being served
                logger.exception("cannot follow %s", self.folder.path.name)
