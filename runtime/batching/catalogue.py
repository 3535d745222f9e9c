"""Which domains a server answers for now: the bundle's, those loaded since, those read on demand.

Names and indices are looked up in one immutable snapshot when a request is accepted. The request
then carries the domains themselves, so nothing that is loaded under the same name or at the same
index meanwhile can answer it.
"""

from __future__ import annotations

import difflib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from prunion.runtime.batching.packs import PackCache, PackFolder
from prunion.runtime.errors import BundleError, DomainError, InputError
from prunion.runtime.model import LiveDomain, Model, Tables

__all__ = ["Catalogue", "Listed"]

LISTED = 20


@dataclass(frozen=True)
class Listed:
    """One domain of the index: its name, whether it answers, and why not."""

    name: str
    ready: bool
    reason: str = ""


@dataclass(frozen=True, eq=False)
class _Snapshot:
    domains: tuple[LiveDomain, ...]

    @cached_property
    def by_name(self) -> dict[str, LiveDomain]:
        return {domain.name: domain for domain in self.domains}

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(domain.name for domain in self.domains)

    @cached_property
    def width(self) -> int:
        return max(len(domain.pack.classes) for domain in self.domains)


class Catalogue:
    """Thread-safe.

    Args:
        model: what answers; its own domains come first.
        folders: where `load` may find packs.
        cache: domains that are read when they are asked for; they have names, but no index.
    """

    def __init__(
        self, model: Model, folders: Sequence[PackFolder] = (), cache: PackCache | None = None
    ) -> None:
        self.model = model
        self.folders = list(folders)
        self.cache = cache
        own = model.snapshot
        # What is served, and the model's own domains that it knows of: always swapped together.
        self._state = _Snapshot(own.domains), own
        self._writing = threading.RLock()

    @property
    def domains(self) -> tuple[LiveDomain, ...]:
        """Those with an index, in its order."""
        return self._snapshot().domains

    @property
    def names(self) -> tuple[str, ...]:
        """Their names; kept, because every request asks."""
        return self._snapshot().names

    @property
    def width(self) -> int:
        """The most classes that a domain with an index has."""
        return self._snapshot().width

    def find(self, name: str) -> LiveDomain | None:
        """A domain in memory; None if `read` may find it in a file."""
        found = self._snapshot().by_name.get(name)
        if found is None and self.cache is not None:
            found = self.cache.resident(name)
        return found

    def read(self, name: str) -> LiveDomain:
        """A domain by name, from its file if it is not in memory.

        Raises DomainError if there is none, BundleError for a file that cannot be taken.
        """
        found = self.find(name)
        if found is None and self.cache is not None:
            found = self.cache.read(name)
        if found is None:
            raise DomainError(self._unknown(name))
        return found

    def at(self, indices: Sequence[int]) -> list[LiveDomain]:
        """The domains of indices, all from one snapshot. Raises DomainError."""
        domains = self.domains
        for index in indices:
            # Python, as a plain Gather, would take a negative index from the end.
            if not 0 <= index < len(domains):
                raise DomainError(
                    f"domain index {str(index)[:20]} is outside 0..{len(domains) - 1}: "
                    f"{self._listing()}"
                )
        return [domains[index] for index in indices]

    def knows(self, name: str) -> bool:
        """Whether a domain answers, or would if it were asked."""
        if self.find(name) is not None:
            return True
        return self.cache is not None and self.cache.folder.stamp(name) is not None

    def load(self, name: str) -> None:
        """Read a domain's pack, anew if it is there already.

        It comes from a folder that was named at start, else from the bundle. Raises DomainError if
        there is none, BundleError for one that cannot be taken.
        """
        for folder in self.folders:
            if folder.stamp(name) is not None:
                self.put(self.model.admit(folder.read(name)))
                return
        own = {domain.name: domain for domain in self.model.snapshot.domains}
        if name in own:
            self.put(own[name])
        elif self.cache is not None and self.cache.folder.stamp(name) is not None:
            self.cache.forget(name)
            self.cache.read(name)
        else:
            raise DomainError(f"no pack of {name!r} lies in the folders that may be loaded from")

    def put(self, domain: LiveDomain) -> None:
        """Answer with this domain from now on, in the place of one of its name."""
        with self._writing:
            now, own = self._merged()
            before = now.domains
            names = [x.name for x in before]
            if domain.name in names:
                place = names.index(domain.name)
                after = (*before[:place], domain, *before[place + 1 :])
            else:
                after = (*before, domain)
            self._state = _Snapshot(after), own
        self._release(set(before) - set(after))

    def unload(self, name: str) -> None:
        """Answer for a domain no more. Raises DomainError, or InputError for the last one."""
        if self.cache is not None and self.cache.forget(name):
            return
        with self._writing:
            now, own = self._merged()
            before = now.domains
            after = tuple(x for x in before if x.name != name)
            if len(after) == len(before):
                raise DomainError(self._unknown(name))
            if not after:
                raise InputError(f"{name!r} is the last domain: load another first")
            self._state = _Snapshot(after), own
        self._release(set(before) - set(after))

    def index(self) -> list[Listed]:
        """All domains: those that answer, and those whose pack `load` would find."""
        names = {x.name: True for x in self.domains}
        if self.cache is not None:
            names |= dict.fromkeys(self.cache.folder.names(), True)
        rest = [x.name for x in self.model.snapshot.domains]
        for folder in self.folders:
            rest += folder.names()
        found = [Listed(name, True) for name in names]
        return found + [Listed(x, False, "unloaded") for x in dict.fromkeys(rest) if x not in names]

    def warm(self, names: Sequence[str]) -> None:
        """Read the domains that are never to leave. Raises DomainError, BundleError."""
        for name in names:
            if self.cache is None:
                raise InputError(f"{name!r} cannot be kept: there is no folder of packs")
            if self.cache.read(name) is None:
                raise BundleError(f"there is no pack of {name!r}, which is never to leave")

    def _snapshot(self) -> _Snapshot:
        """What is served; a domain that was added to the model itself, or removed, as well."""
        now, own = self._state
        if own is not self.model.snapshot:
            with self._writing:  # or what is loaded meanwhile would be lost
                self._state = self._merged()
                now, _ = self._state
        return now

    def _merged(self) -> tuple[_Snapshot, Tables]:
        """The same for who holds the lock."""
        (now, before), own = self._state, self.model.snapshot
        if own is before:
            return now, own
        gone = set(before.domains) - set(own.domains)
        new = [x for x in own.domains if x not in set(before.domains)]
        return _Snapshot((*(x for x in now.domains if x not in gone), *new)), own

    def _release(self, gone: set[LiveDomain]) -> None:
        own = set(self.model.snapshot.domains)
        for domain in gone:
            if domain not in own:
                self.model.release(domain)

    def _unknown(self, name: str) -> str:
        close = difflib.get_close_matches(name, [x.name for x in self.domains], n=3)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        return f"no domain {name[:100]!r}: {hint}{self._listing()}"

    def _listing(self) -> str:
        names = [x.name for x in self.domains]
        more = ", …" if len(names) > LISTED or self.cache is not None else ""
        return f"the model has {', '.join(names[:LISTED])}{more}"
