"""Pinned (single-domain) sessions, and how near their answers are to the mixed session's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from prunion.runtime.backends.session import Session, run
from prunion.runtime.bundle.pack import Pack
from prunion.runtime.graph.form import GraphForm

__all__ = ["Pinned", "distance", "kept_note"]


@dataclass(frozen=True, eq=False)
class Pinned:
    """A session of one domain: takes `image` as the graph's form says, gives its own `[N, C]`.

    Attributes:
        bytes: size of its graph, the measure of the memory limit.
        note: why it is sliced, or why not.
    """

    session: Session
    bytes: int
    sliced: bool
    note: str

    def run(self, image: np.ndarray) -> np.ndarray:
        """`[N, C]`."""
        return run(self.session, {"image": image})


def distance(made: Pinned, mixed: Session, form: GraphForm, pack: Pack) -> float:
    """The largest difference of logits on one random batch, as a share of the largest logit.

    Raises InputError where a backend cannot run the batch.
    """
    image = form.noise(2)
    feeds: Mapping[str, np.ndarray] = form.feeds(image, np.zeros(2, np.int64), form.tables([pack]))
    expected, got = run(mixed, feeds), made.run(image)
    return float(np.abs(expected - got).max() / max(np.abs(expected).max(), 1e-12))


def kept_note(alive: np.ndarray) -> str:
    """What a session was sliced to, in words."""
    return f"sliced to {int(alive.sum())} of {len(alive)} channel units"
