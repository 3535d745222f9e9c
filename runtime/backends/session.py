"""What every backend's session is, and how it is run: five libraries behind one protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from prunion.runtime.base import Backend, reason_of, whole_argument
from prunion.runtime.errors import InputError, PrunionError

__all__ = ["ANY_BATCH", "Session", "SessionOptions", "run"]

ANY_BATCH = (1, 1 << 30)
MOST_THREADS = 4096


@dataclass(frozen=True)
class SessionOptions:
    """How sessions run.

    Attributes:
        backend: `auto` (CUDA where it works, else CPU), or a key of BACKENDS.
        threads: threads inside one operator; None leaves it to ONNX Runtime, within the quota of
            time of a container.
        share_arena: all sessions of the process take CPU memory from one arena.
        spare_memory: no block laid out ahead for each batch shape, which comes on top of what the
            first run took.
        provider_options: what the provider itself is told.
        entries: further entries of ONNX Runtime's session options.

    Raises InputError for a number of threads that is none.
    """

    backend: Backend = "auto"
    threads: int | None = None
    share_arena: bool = True
    spare_memory: bool = False
    provider_options: Mapping[str, str] = field(default_factory=dict)
    entries: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.threads is not None:
            object.__setattr__(
                self, "threads", whole_argument("threads", self.threads, MOST_THREADS)
            )


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
