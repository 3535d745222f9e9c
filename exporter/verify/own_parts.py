"""A bundle's weights of single domains, held against the checkpoint's to the last bit.

Answers to noise do not tell: one bit of a mask may move no logit by more than the tolerance. All
that a method stores of a domain is taken from the checkpoint as it is, so nothing is rounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from prunion.exporter.bundle import packs_of
from prunion.exporter.verify.variants import first_few
from prunion.runtime.bundle import Bundle
from prunion.trainer.network import Checkpoint

__all__ = ["check_own_parts"]


def check_own_parts(bundle: Bundle, against: Path | str, loaded: Checkpoint) -> Iterator[str]:
    """What in a pack, or shared by packs, is not what the checkpoint gives the domain.

    Args:
        against: the checkpoint; `loaded` is of it, and may hold an only domain's weights already.
    """
    manifest = bundle.manifest
    if not (manifest.own_weights or manifest.adapters):
        return
    if not {str(x["name"]) for x in loaded.meta["domains"]}.issuperset(bundle.domains):
        return  # which the comparison with masked torch tells
    for pack in packs_of(against, bundle.domains):
        held = bundle.pack(pack.name).own
        other = [
            key for key in sorted({*held, *pack.own}) if not _same(held.get(key), pack.own.get(key))
        ]
        yield from first_few(
            f"domain {pack.name}: {key} of its pack is not the checkpoint's: export the bundle "
            "again"
            for key in other
        )


def _same(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    if one is None or other is None:
        return False
    return one.dtype == other.dtype and np.array_equal(one, other)
