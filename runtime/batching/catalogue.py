"""Which domains a server answers for now: the bundle's, loaded and watched ones, those on demand.

Names and indices are looked up in one immutable snapshot when a request is accepted. The request
then carries the domains themselves, so nothing that is loaded under the same name meanwhile can
answer it. An index means one name for as long as the server lives.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from prunion.runtime.batching.folder import PackFolder, UnreadError
from prunion.runtime.batching.layers import Layers, rows_after
from prunion.runtime.batching.packs import PackCache
from prunion.runtime.bundle import Pack
from prunion.runtime.errors import BundleError, DomainError, InputError, PrunionError
from prunion.runtime.model import LiveDomain, Model

__all__ = ["Catalogue", "Listed"]

logger = logging.getLogger("prunion.serve")


@dataclass(frozen=True)
class Listed:
    """One domain of the index: its name, whether it answers, and why not."""

    name: str
    ready: bool
    reason: str = ""


class Catalogue:
    """Thread-safe.

    Args:
        model: what answers; its own domains come first.
        folders: where `load` may find packs.
        cache: domains that are read when they are asked for; they have names, but no index.
        watched_folder: whose packs a watcher puts in; they too have names, but no index.

    Attributes:
        bundle_name: of the model that takes `domain`: the bundle's, or one like it where that is
            the name of one of its domains, which could not be asked else.
    """

    def __init__(
        self,
        model: Model,
        folders: Sequence[PackFolder] = (),
        cache: PackCache | None = None,
        watched_folder: PackFolder | None = None,
    ) -> None:
        self.model = model
        self.folders = list(folders)
        self.cache = cache
        self.watched_folder = watched_folder
        own = model.snapshot
        self.bundle_name = model.bundle.manifest.name
        while self.bundle_name in own.names:
            self.bundle_name += ".bundle"
        self._state = Layers(own, own.names)
        self._writing = threading.RLock()

    @property
    def domains(self) -> tuple[LiveDomain, ...]:
        """Those that answer and are not read on demand; those with an index first."""
        return self._snapshot().domains

    @property
    def names(self) -> tuple[str, ...]:
        """Names by index, "" where nothing answers; kept, because every request asks."""
        return self._snapshot().names

    @property
    def watched(self) -> tuple[str, ...]:
        """The names of the packs that a watcher put in."""
        return tuple(self._snapshot().watched)

    @property
    def width(self) -> int:
        """The most classes that one of `domains` has."""
        return self._snapshot().width

    def find(self, name: str) -> LiveDomain | None:
        """A domain in memory; None if `read` may find it in a file."""
        now = self._snapshot()
        found = now.by_name.get(name)
        if found is None and self.cache is not None and self._may_read(now, name):
            found = self.cache.resident(name)
        return found

    def read(self, name: str) -> LiveDomain:
        """A domain by name, from its file if it is not in memory.

        Raises DomainError if there is none, BundleError for a file that cannot be taken.
        """
        found = self.find(name)
        if found is None and self.cache is not None and self._may_read(self._snapshot(), name):
            found = self.cache.read(name)
        if found is None:
            raise DomainError(self.unknown(name))
        return found

    def at(self, indices: Sequence[int]) -> list[LiveDomain]:
        """The domains of indices, all from one snapshot. Raises DomainError."""
        rows, found = self._snapshot().indexed, []
        for index in indices:
            # Python, as a plain Gather, would take a negative index from the end.
            domain = rows[index] if 0 <= index < len(rows) else None
            if domain is None:
                raise DomainError(self._snapshot().nothing_at(index, self.cache is not None))
            found.append(domain)
        return found

    def knows(self, name: str) -> bool:
        """Whether a domain answers, or would if it were asked."""
        return self.find(name) is not None or self._on_demand(name)

    def load(self, name: str) -> None:
        """Read a domain's pack, anew if it is there already.

        It comes from the watched folder, else from one that was named at start, else from the
        bundle. Raises DomainError if there is none, BundleError for one that cannot be taken.
        """
        watched = self.watched_folder
        if watched is not None and watched.stamp(name) is not None:
            self.watch(watched.read(name))
            self._swap(lambda now: now.allowed(name))
        elif self._load_file(name):
            return
        elif name in self.model.snapshot.names:
            self._swap(lambda now: now.restored(name))
        elif self.cache is not None and self.cache.folder.stamp(name) is not None:
            self._check_name(name)
            self.cache.forget(name)
            self.cache.read(name)
            self._swap(lambda now: now.restored(name))
        else:
            raise DomainError(f"no pack of {name!r} lies in the folders that may be loaded from")

    def put(self, domain: LiveDomain) -> None:
        """Answer with this domain from now on, at the index that its name has or gets.

        Raises InputError for the name of the bundle's model.
        """
        self._check_name(domain.name)
        self._swap(lambda now: now.with_loaded(domain))

    def watch(self, pack: Pack) -> None:
        """Answer with a pack of the watched folder, over whatever has its name.

        Raises BundleError for one that does not fit, InputError for the bundle model's name.
        """
        self._check_name(pack.name)
        domain = self.model.admit(pack)
        self._swap(lambda now: now.with_watched(domain))

    def unwatch(self, name: str) -> bool:
        """The watched pack has gone: answer with what it took the place of, if that was anything.

        Returns whether the name still answers.
        """
        self._swap(lambda now: now.without_watched(name))
        return self.knows(name)

    def unload(self, name: str) -> None:
        """Answer for a domain no more. Raises DomainError, or InputError for the last one."""

        def change(now: Layers) -> Layers:
            if name not in now.by_name and not self._on_demand(name):
                raise DomainError(self.unknown(name))
            if list(now.by_name) == [name]:
                raise InputError(f"{name!r} is the last domain: load another first")
            return now.without(name)

        self._swap(change)
        if self.cache is not None:
            self.cache.forget(name)

    def carry_over(self, old: Catalogue) -> None:
        """Take over what clients loaded and unloaded, and what indices mean, from another bundle.

        Packs are read from their folders anew; one that does not fit any more is logged. Raises
        UnreadError for one that cannot be read now: the other bundle would lack it for good.
        """
        before = old._snapshot()
        gone = {name: None for name, domain in before.loaded.items() if domain is None}
        rows = rows_after(before.rows, self._snapshot().rows)
        self._swap(lambda now: replace(now, loaded=gone, rows=rows))
        changed = [str(row) for row, name in enumerate(before.rows) if name != rows[row]]
        if changed:
            logger.warning(
                "indices %s would mean other domains than in the bundle before, and answer no more "
                "until the server is started anew: ask by name",
                ", ".join(changed),
            )
        for name in before.loaded.keys() - gone.keys():
            try:
                if not self._load_file(name):
                    raise DomainError("its pack is in no folder that may be loaded from")
            except UnreadError:
                raise
            except PrunionError as exc:
                logger.warning("what was loaded as %r is not served any more: %s", name, exc)

    def index(self) -> list[Listed]:
        """All domains: those that answer, and those whose pack `load` would find."""
        now = self._snapshot()
        demanded = _listed(self.cache.folder) if self.cache is not None else []
        names = dict.fromkeys([*now.by_name, *(x for x in demanded if self._may_read(now, x))])
        rest = [*now.own.names, *demanded]
        for folder in (*self.folders, self.watched_folder):
            rest += _listed(folder) if folder is not None else []
        found = [Listed(name, not (bad := self.refused(name)), bad) for name in names]
        others = (x for x in dict.fromkeys(rest) if x not in names and x != self.bundle_name)
        return found + [Listed(x, ready=False, reason="unloaded") for x in others]

    def refused(self, name: str) -> str:
        """Why a domain that is read on demand cannot answer, as far as it was asked; else ""."""
        now = self._snapshot()
        if self.cache is None or name in now.by_name or not self._may_read(now, name):
            return ""
        return self.cache.refused(name)

    def warm(self, names: Sequence[str]) -> None:
        """Read the domains that are never to leave. Raises DomainError, BundleError."""
        for name in names:
            if self.cache is None:
                raise InputError(f"{name!r} cannot be kept: there is no folder of packs")
            if self.cache.read(name) is None:
                raise BundleError(f"there is no pack of {name!r}, which is never to leave")

    def shadowed(self) -> list[str]:
        """Packs on demand that are never asked, because a model of the bundle has their name."""
        names = _listed(self.cache.folder) if self.cache is not None else []
        own = {*self.model.snapshot.names, self.bundle_name}
        return [name for name in names if name in own]

    def unknown(self, name: str) -> str:
        """What to say of a name that no domain has."""
        return self._snapshot().unknown(name, more=self.cache is not None)

    def _snapshot(self) -> Layers:
        """What is served; a domain that was added to the model itself, or removed, as well."""
        if self._state.own is not self.model.snapshot:
            with self._writing:  # or what is loaded meanwhile would be lost
                self._state = self._merged()
        return self._state

    def _merged(self) -> Layers:
        """The same for who holds the lock."""
        now, own = self._state, self.model.snapshot
        return now if own is now.own else now.with_own(own)

    def _swap(self, change: Callable[[Layers], Layers]) -> None:
        with self._writing:
            before = self._merged()
            after = self._state = change(before)
        for domain in before.held - after.held:
            self.model.release(domain)

    def _load_file(self, name: str) -> bool:
        """Whether a pack lies in a folder that may be loaded from, and answers from now on."""
        for folder in self.folders:
            if folder.stamp(name) is not None:
                self.put(self.model.admit(folder.read(name)))
                return True
        return False

    def _may_read(self, now: Layers, name: str) -> bool:
        # An entry there that does not answer says that the name was unloaded.
        return name not in now.loaded and name != self.bundle_name

    def _on_demand(self, name: str) -> bool:
        if self.cache is None or not self._may_read(self._snapshot(), name):
            return False
        try:
            return self.cache.folder.stamp(name) is not None
        except UnreadError:  # it may well be
            return True

    def _check_name(self, name: str) -> None:
        if name == self.bundle_name:
            raise InputError(
                f"{name!r} is the name of the bundle's own model, which takes `domain`: export the "
                "pack, or the bundle, under another name"
            )


def _listed(folder: PackFolder) -> list[str]:
    """Its names; none where it cannot be listed now."""
    try:
        return folder.names()
    except OSError as exc:
        logger.warning("%s cannot be listed (%s)", folder.path.name, exc.strerror)
        return []
