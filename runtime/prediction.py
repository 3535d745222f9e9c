"""One image's answer, from logits to class names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from prunion.runtime.errors import InputError
from prunion.runtime.pack import Pack

__all__ = ["Candidate", "Prediction", "to_prediction"]


class Candidate(NamedTuple):
    """One class of a domain, with its probability in 0..1."""

    name: str
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The most probable class of one image; `top` holds the best few, best first."""

    domain: str
    class_name: str
    index: int
    probability: float
    top: tuple[Candidate, ...]


def to_prediction(logits: np.ndarray, pack: Pack, top_k: int) -> Prediction:
    """The best `top_k` classes of `logits` `[Cmax]`. Raises InputError if they are not finite."""
    own = logits[: len(pack.classes)].astype(np.float64)
    if not np.isfinite(own).all():
        raise InputError(f"the network's answer for {pack.name} is not finite: check the image")
    weights = np.exp(own - own.max())
    probabilities = weights / weights.sum()
    best = np.argsort(-probabilities, kind="stable")[:top_k]
    top = tuple(Candidate(pack.classes[i], int(i), float(probabilities[i])) for i in best)
    return Prediction(pack.name, *top[0], top)
