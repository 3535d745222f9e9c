"""What a bundle stores of single domains and of their trunk, held against the checkpoint's.

Answers to noise do not tell: one bit of a mask, or a number of a head, may move no logit by more
than the tolerance, and what the noise never reaches moves none. All that is stored of a domain but
its BatchNorm is taken from the checkpoint as it is, so nothing is rounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from prunion.exporter.bundle import packs_of
from prunion.exporter.verify.variants import first_few
from prunion.runtime.bundle import Bundle, Pack
from prunion.trainer.network import Checkpoint

__all__ = ["check_own_parts"]

# How far a BatchNorm's scale or shift may be off, as a share of itself or of the domain's largest:
# they are computed, and another machine's square root rounds otherwise.
ROUNDED = 1e-6


def check_own_parts(bundle: Bundle, against: Path | str, loaded: Checkpoint) -> Iterator[str]:
    """What in a pack, in the trunk, or shared by packs is not what the checkpoint gives.

    Packs and the trunk's hash are those of the graphs, which other checks find out.

    Args:
        against: the checkpoint; `loaded` is of it, and may hold an only domain's weights already.
    """
    if not {str(x["name"]) for x in loaded.meta["domains"]}.issuperset(bundle.domains):
        return  # which the comparison with masked torch tells
    single = bundle.manifest.heads == "single"
    packs = packs_of(against, bundle.domains, single=single)
    if packs[0].trunk_hash not in ("", bundle.manifest.trunk_hash):
        yield "the weights of its trunk are not the checkpoint's: export the bundle again"
    yield from first_few(
        f"domain {pack.name}: {key} of its pack is not the checkpoint's: export the bundle again"
        for pack in packs
        for key in _others(bundle.pack(pack.name), pack)
    )


def _others(held: Pack, pack: Pack) -> Iterator[str]:
    """Names of what differs between two packs of a domain."""
    if not _near(held.bank, pack.bank):
        yield "bank"
    for name in ("head_weight", "head_bias", "switches"):
        if not _same(getattr(held, name), getattr(pack, name)):
            yield name
    for key in sorted({*held.own, *pack.own}):
        if not _same(held.own.get(key), pack.own.get(key)):
            yield key


def _near(one: np.ndarray, other: np.ndarray) -> bool:
    most = float(np.abs(other).max(initial=0.0))
    return one.shape == other.shape and np.allclose(one, other, rtol=ROUNDED, atol=ROUNDED * most)


def _same(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    if one is None or other is None:
        return False
    return one.dtype == other.dtype and np.array_equal(one, other)
