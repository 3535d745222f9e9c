"""The domains of a loaded model at one moment: an immutable snapshot that is swapped whole."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from prunion.runtime.base import listed, shown
from prunion.runtime.bundle import Pack
from prunion.runtime.errors import DomainError, InputError
from prunion.runtime.graph import GraphForm

__all__ = ["DomainLike", "LiveDomain", "Tables"]

DomainLike = str | int | np.integer
INT64 = np.dtype(np.int64)


@dataclass(frozen=True, eq=False)
class LiveDomain:
    """One domain; `serial` is never used again, so that sessions can be kept by it."""

    serial: int
    pack: Pack

    @property
    def name(self) -> str:
        """The domain's name."""
        return self.pack.name


@dataclass(frozen=True, eq=False)
class Tables:
    """All domains in the order of their indices.

    A request takes one snapshot and finishes with it, whatever is added or removed meanwhile.

    Attributes:
        stored: whether these are exactly the rows that the graph has as defaults.
    """

    domains: tuple[LiveDomain, ...]
    form: GraphForm
    stored: bool = False

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Domain names; a name's place is its index."""
        return tuple(domain.name for domain in self.domains)

    @cached_property
    def rows(self) -> dict[int, int]:
        """The row of each domain by its serial."""
        return {domain.serial: row for row, domain in enumerate(self.domains)}

    @cached_property
    def max_classes(self) -> int:
        """Cmax, the width of `logits`."""
        return max(len(domain.pack.classes) for domain in self.domains)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """How many classes each domain has."""
        return tuple(len(domain.pack.classes) for domain in self.domains)

    @cached_property
    def feeds(self) -> dict[str, np.ndarray]:
        """The graph's optional inputs for these domains, as `GraphForm.tables` gives them."""
        return self.form.tables([domain.pack for domain in self.domains])

    def index(self, domain: DomainLike) -> int:
        """The row of a domain given by name or index. Raises DomainError if there is none."""
        if isinstance(domain, str):
            if domain in self.names:
                return self.names.index(domain)
            raise DomainError(self._unknown(domain))
        if isinstance(domain, bool) or not isinstance(domain, (int, np.integer)):
            raise DomainError(f"a domain is a name or an index, not {domain!r}")
        # A plain Gather would wrap a negative index around and answer for another domain.
        if not 0 <= domain < len(self.domains):
            raise DomainError(
                f"domain index {domain} is outside 0..{len(self.domains) - 1}: {self._listing()}"
            )
        return int(domain)

    def indices(
        self, domain: DomainLike | Sequence[DomainLike] | np.ndarray, count: int
    ) -> np.ndarray:
        """`[count]` int64 rows, each checked to exist."""
        # The usual array first: at batch 1 a microsecond is half a percent of a small network.
        if isinstance(domain, np.ndarray) and domain.dtype == INT64 and domain.ndim == 1:
            rows = self._checked(domain.copy())
        elif isinstance(domain, np.ndarray) and domain.ndim == 0:
            return np.full(count, self.index(domain.item()), dtype=np.int64)
        elif isinstance(domain, (bytes, bytearray, memoryview)):
            # A sequence of numbers, which nobody meant.
            raise DomainError(f"a domain is a name or an index, not {shown(domain)}")
        elif isinstance(domain, str) or not isinstance(domain, (Sequence, np.ndarray)):
            return np.full(count, self.index(domain), dtype=np.int64)
        else:
            rows = np.array([self.index(x) for x in domain], dtype=np.int64)
        if len(rows) != count:
            raise DomainError(f"{len(rows)} domains for {count} images: give one, or one for each")
        return rows

    def _checked(self, rows: np.ndarray) -> np.ndarray:
        listed = rows.tolist()
        for row in (min(listed), max(listed)) if listed else ():
            if not 0 <= row < len(self.domains):
                self.index(row)
        return rows

    def with_domain(self, domain: LiveDomain) -> Tables:
        """A snapshot with one domain more.

        Raises InputError if its name is taken, or the graph knows one domain only.
        """
        self.refuse_another()
        if domain.name in self.names:
            raise InputError(
                f"there is a domain {domain.name!r} already: remove it first, or rename the pack"
            )
        return Tables((*self.domains, domain), self.form)

    def refuse_another(self) -> None:
        """Raise InputError if the graph knows one domain only."""
        if self.form.single:
            raise InputError(
                f"this bundle is specialised to {self.names[0]!r} and takes no other domain: "
                "export without --specialise"
            )

    def without(self, index: int) -> Tables:
        """A snapshot with one domain less. Raises InputError for the last one."""
        if len(self.domains) == 1:
            raise InputError(
                f"{self.names[0]!r} is the last domain: add another before removing it"
            )
        return Tables(self.domains[:index] + self.domains[index + 1 :], self.form)

    def _unknown(self, name: str) -> str:
        close = difflib.get_close_matches(name, self.names, n=3)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        return f"no domain {name!r}: {hint}{self._listing()}"

    def _listing(self) -> str:
        return f"the model has {listed(self.names)}"
