"""Parameters as the papers' tables count them, for each method, from a network's sizes alone.

32 bits for a number and one for a mask's, without classifiers, as a multiple of the backbone with
one domain's BatchNorm. The first of the domains is the backbone's own, ImageNet, which stores
nothing more.
"""

from __future__ import annotations

from dataclasses import dataclass

from prunion.trainer.config import Method
from prunion.trainer.methods.adapter import NUMBER_BITS, WeightAdapter

__all__ = ["Sizes", "adapter_ratio", "params_ratio"]

NUMBERS = 3  # k1, k2 and k3 of each layer


@dataclass(frozen=True)
class Sizes:
    """Numbers in a backbone's weights, in BatchNorm's scales and shifts, and how many layers."""

    weights: int
    norms: int
    layers: int


def params_ratio(method: Method, sizes: Sizes, domains: int, *, own_norms: bool) -> float | None:
    """Parameters of `domains` domains over the backbone's; None where training decides.

    Args:
        own_norms: whether each domain stores a BatchNorm of its own; printed columns differ in it.
    """
    backbone = NUMBER_BITS * (sizes.weights + sizes.norms)
    norms = NUMBER_BITS * sizes.norms if own_norms else 0
    extra = {
        "feature": 0,
        "norms": NUMBER_BITS * sizes.norms,
        "finetune": backbone,
        "piggyback": sizes.weights + norms,
        "affine": sizes.weights + NUMBER_BITS * NUMBERS * sizes.layers + norms,
    }
    return 1 + (domains - 1) * extra[method] / backbone if method in extra else None


def adapter_ratio(adapter: WeightAdapter, sizes: Sizes, domains: int, *, own_norms: bool) -> float:
    """The same of a method whose parts depend on where they are put, from an adapter of one domain.

    Args:
        sizes: without BatchNorm's where a column counts convolutions alone.
        own_norms: whether each domain stores a BatchNorm of its own.
    """
    backbone = NUMBER_BITS * (sizes.weights + sizes.norms)
    each = adapter.bits() + (NUMBER_BITS * sizes.norms if own_norms else 0)
    return 1 + (adapter.shared_bits() + (domains - 1) * each) / backbone
