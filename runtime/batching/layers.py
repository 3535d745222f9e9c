"""What the names and indices of a server mean at one moment: layers of domains, seen as one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from prunion.runtime.base import listed, shown
from prunion.runtime.model import LiveDomain, Tables

__all__ = ["Layers", "rows_after"]


@dataclass(frozen=True, eq=False)
class Layers:
    """Immutable; a change makes another one.

    A name is the watched pack's, else that of what a client loaded, else the model's own: where
    the upper one goes, the one below answers again.

    Attributes:
        own: the model's domains.
        loaded: what clients loaded; None for a name that they unloaded.
        watched: the packs of a watched folder, which have no index: processes that follow one
            folder need not see its packs in one order.
        rows: the name that each index means, for as long as the server lives; "" for an index that
            means nothing any more.
    """

    own: Tables
    rows: tuple[str, ...]
    loaded: Mapping[str, LiveDomain | None] = field(default_factory=dict)
    watched: Mapping[str, LiveDomain] = field(default_factory=dict)

    @cached_property
    def by_name(self) -> dict[str, LiveDomain]:
        """The domains that answer."""
        own = {domain.name: domain for domain in self.own.domains}
        found = {**own, **self.loaded, **self.watched}
        return {name: domain for name, domain in found.items() if domain is not None}

    @cached_property
    def domains(self) -> tuple[LiveDomain, ...]:
        """The same, the model's own first and the watched ones last."""
        return tuple(self.by_name.values())

    @cached_property
    def indexed(self) -> tuple[LiveDomain | None, ...]:
        """By index; None where nothing answers."""
        return tuple(self.by_name.get(name) for name in self.rows)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """By index; "" where nothing answers."""
        return tuple(name if name in self.by_name else "" for name in self.rows)

    @cached_property
    def width(self) -> int:
        """The most classes that one of them has."""
        return max((len(domain.pack.classes) for domain in self.domains), default=1)

    @property
    def held(self) -> set[LiveDomain]:
        """All domains but the model's own, also those that another one lies over."""
        return {x for x in (*self.loaded.values(), *self.watched.values()) if x is not None}

    def with_own(self, own: Tables) -> Layers:
        """After domains were added to the model itself, or removed."""
        return replace(self, own=own, rows=_with_rows(self.rows, own.names))

    def with_loaded(self, domain: LiveDomain) -> Layers:
        """Its name has an index from now on."""
        loaded = {**self.loaded, domain.name: domain}
        return replace(self, loaded=loaded, rows=_with_rows(self.rows, [domain.name]))

    def with_watched(self, domain: LiveDomain) -> Layers:
        """Over whatever has its name."""
        return replace(self, watched={**self.watched, domain.name: domain})

    def without_watched(self, name: str) -> Layers:
        """What lies below answers again."""
        return replace(self, watched={k: v for k, v in self.watched.items() if k != name})

    def without(self, name: str) -> Layers:
        """No layer answers for a name, until one of them is loaded."""
        return replace(self.without_watched(name), loaded={**self.loaded, name: None})

    def restored(self, name: str) -> Layers:
        """Without what a client loaded or unloaded under a name."""
        return replace(self, loaded={k: v for k, v in self.loaded.items() if k != name})

    def allowed(self, name: str) -> Layers:
        """Without a client's word that a name be unloaded."""
        return self if self.loaded.get(name) is not None else self.restored(name)

    def unknown(self, name: str, more: bool) -> str:
        """What to say of a name that no domain has; `more` if others are read on demand."""
        close = difflib.get_close_matches(name, self.by_name, n=3)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        return f"no domain {shown(name)}: {hint}{self._listing(more)}"

    def nothing_at(self, index: int, more: bool) -> str:
        """What to say of an index at which nothing answers."""
        if not 0 <= index < len(self.rows):
            hint = "; those of a watched folder have names, but no index" if self.watched else ""
            return (
                f"domain index {shown(index)} is outside 0..{len(self.rows) - 1}: "
                f"{self._listing(more)}{hint}"
            )
        if self.rows[index]:
            return (
                f"no domain at index {index}, which stays that of {self.rows[index]!r}: load it "
                f"again, or ask for another; {self._listing(more)}"
            )
        return (
            f"no domain at index {index}, which meant another one in the bundle before: ask by "
            "name, or start the server anew"
        )

    def _listing(self, more: bool) -> str:
        return f"the model has {listed(list(self.by_name), open_end=more)}"


def rows_after(before: tuple[str, ...], own: Iterable[str]) -> tuple[str, ...]:
    """What indices mean after another bundle has come, whose domains are `own` in its order.

    Its domains have its own rows, as in a server that starts now. An index that meant another
    domain means nothing any more, or a client that knew it would get that of the other one.
    """
    rows = list(before)
    for row, name in enumerate(own):
        if row == len(rows):
            rows.append(name)
        elif rows[row] != name:
            rows[row] = ""
    return tuple(rows)


def _with_rows(rows: tuple[str, ...], names: Iterable[str]) -> tuple[str, ...]:
    return (*rows, *(name for name in names if name not in rows))
