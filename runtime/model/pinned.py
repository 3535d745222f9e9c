"""One domain's session, and what it takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prunion.runtime.backends import Session, run

__all__ = ["Pinned"]


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
