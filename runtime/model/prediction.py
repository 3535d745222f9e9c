"""What a model answers: classes of a domain with their probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from prunion.runtime.base import Precision, arithmetic_of
from prunion.runtime.bundle import Pack
from prunion.runtime.errors import BackendError, BundleError, InputError, PrunionError

__all__ = ["Candidate", "Prediction", "not_finite", "to_prediction"]


class Candidate(NamedTuple):
    """One class of a domain: its place among the domain's classes, its probability in 0 … 1."""

    name: str
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The most probable class of one image: name, place among the domain's classes, probability.

    `top` holds the best few of the domain's classes, best first.
    """

    domain: str
    class_name: str
    index: int
    probability: float
    top: tuple[Candidate, ...]


def to_prediction(logits: np.ndarray, pack: Pack, top_k: int) -> Prediction:
    """The best `top_k` classes of `logits` `[Cmax]`."""
    own = logits[: len(pack.classes)].astype(np.float64)
    weights = np.exp(own - own.max())
    probabilities = weights / weights.sum()
    best = np.argsort(-probabilities, kind="stable")[:top_k]
    top = tuple(Candidate(pack.classes[i], int(i), float(probabilities[i])) for i in best)
    return Prediction(pack.name, *top[0], top)


def not_finite(domain: str, precision: Precision, provider: str, *, ordinary: bool) -> PrunionError:
    """The error of an answer that is not finite, by whose fault it is.

    In float32 arithmetic it is the image's (InputError), or the network's where the image is an
    `ordinary` one, of numbers that pixels have (BundleError); else perhaps the graph's
    (BackendError).
    """
    if arithmetic_of(precision) == "fp32":
        told = f"the network's answer for {domain} is not finite"
        if ordinary:
            return BundleError(
                f"{told}, and the image is: numbers of the domain or of the network are too large "
                "for 32 bits; train and export again"
            )
        return InputError(f"{told}: check the image")
    return BackendError(
        f"the {precision} graph's answer for {domain} is not finite on {provider}: use the "
        "precision fp32, or export again, which keeps what float16 cannot hold in float32"
    )
