"""What every backend's session is, and how it is run: five libraries behind one protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from prunion.runtime.base import reason_of
from prunion.runtime.errors import InputError, PrunionError

__all__ = ["ANY_BATCH", "Session", "run"]

ANY_BATCH = (1, 1 << 30)


class Session(Protocol):
    """A graph ready to answer; thread-safe.

    A *mixed* session takes `image [N, …]`, `domain [N]` int64 and, if they are fed, the tables of
    all domains; a *pinned* one, for a single domain, takes the image alone.
    """

    @property
    def needs_tables(self) -> bool:
        """Whether a mixed session must be fed the tables: it knows no inputs with defaults."""

    @property
    def batches(self) -> tuple[int, int]:
        """The least and the most images that it takes at a time."""

    @property
    def digest(self) -> str:
        """The hash of what was compiled, where the graph and the versions do not decide it."""

    def run(self, outputs: Sequence[str], feeds: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
        """The outputs named, on the host, as arrays of their own."""

    def get_providers(self) -> Sequence[str]:
        """What answers; the first name counts."""

    def check_tables(self, tables: Mapping[str, np.ndarray]) -> None:
        """Raise InputError if these tables are larger than the session takes."""

    def note(self) -> str:
        """What it has to say of itself, such as an engine's precision; empty for nothing."""


def run(session: Session, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
    """`logits [N, Cmax]`. Raises InputError where the backend refuses the feeds."""
    try:
        return session.run(["logits"], feeds)[0]
    except PrunionError:  # some sessions say themselves what is wrong
        raise
    except Exception as exc:  # the libraries' errors share no base but Exception
        shapes = {name: list(value.shape) for name, value in feeds.items()}
        raise InputError(f"the backend refused the batch {shapes}: {reason_of(exc)}") from None
