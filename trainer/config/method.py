"""What a run's method is, in so far as it decides other keys of `[train]`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["METHODS", "AffineForm", "Method", "MethodTraits", "Norms"]

Method = Literal["bap", "ba2", "norms", "feature", "finetune", "piggyback", "affine"]
Norms = Literal["auto", "own", "frozen"]
AffineForm = Literal["simple", "full"]


@dataclass(frozen=True)
class MethodTraits:
    """What a method means for a run.

    Attributes:
        what: in words, for messages.
        prunes: whether channels are removed, and the budget kept.
        trunk: what becomes of the trunk; "" leaves it to the run.
        own_norms: whether each domain has a BatchNorm of its own, by default.
        own_weights: each domain has trunk weights of its own, so a bundle holds one of them.
        masks: whether scores are learned that `switch_lr` moves.
    """

    what: str
    prunes: bool = False
    trunk: Literal["", "frozen", "tuned"] = "frozen"
    own_norms: bool = True
    own_weights: bool = False
    masks: bool = False


METHODS: dict[Method, MethodTraits] = {
    "bap": MethodTraits("budget-aware pruning", prunes=True, trunk=""),
    "ba2": MethodTraits("budget-aware adapters", prunes=True, trunk=""),
    "norms": MethodTraits("a BatchNorm and a head for each domain"),
    "feature": MethodTraits("a head for each domain on the frozen backbone", own_norms=False),
    "finetune": MethodTraits("a network for each domain", trunk="tuned", own_weights=True),
    "piggyback": MethodTraits(
        "a mask over the weights for each domain", own_norms=False, own_weights=True, masks=True
    ),
    "affine": MethodTraits(
        "an affine transform of the weights for each domain", own_weights=True, masks=True
    ),
}
