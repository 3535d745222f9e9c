"""What a verdict judges, made up."""

from __future__ import annotations

import numpy as np

from prunion.trainer.score.learned import Learned
from prunion.trainer.score.pruning import Pruning

__all__ = ["CUT", "MADE_BY", "NOTHING", "SETS", "SMALLER", "bits", "learned"]

SETS = {"classes": ["x", "y"], "digests": {"train": "images:1", "test": "images:2"}}
MADE_BY = {
    "config": {"seed": 0, "budget": {"limit": 0.5}, "train": {"settle": 4}},
    "domains": dict.fromkeys(("a", "b", "signs", "cars", "first", "last"), SETS),
}

CUT = Pruning(prunes=True, lead="learning", kept=0.25)
NOTHING = Pruning(prunes=False, kept=1.0)
SMALLER = "smaller [budget]"


def learned(
    right: dict[str, np.ndarray],
    trained: float,
    limit: float | None = 0.25,
    uncut: float = 0.25,
    pruning: Pruning | None = CUT,
) -> Learned:
    return Learned(
        right=right,
        accuracy={name: float(bits.mean()) for name, bits in right.items()},
        trained=dict.fromkeys(right, trained),
        images=dict.fromkeys(right, 2000),
        limit=limit,
        uncut=uncut,
        pruning=pruning,
        made_by={**MADE_BY, "domains": dict.fromkeys(right, SETS)},
    )


def bits(count: int, share: float) -> np.ndarray:
    """`share` of `count` answers right, the first ones."""
    return np.arange(count) < round(share * count)
