"""Subsets of a set of images: a share of each class, or a few images of each."""

from __future__ import annotations

import numpy as np

from prunion.runtime.images import ImageSet

__all__ = ["held_out", "limited"]


def held_out(images: ImageSet, share: float, seed: list[int]) -> tuple[ImageSet, ImageSet]:
    """Split off a share of each class, at least one image where there are two.

    Copies of an image are one, and go where it goes: one that stayed would be known. Where another
    class has it too, it is held out only if it is of both.
    """
    rng = np.random.default_rng(seed)
    same = np.arange(len(images)) if images.same is None else images.same
    held = np.zeros(len(images), bool)
    for members in _shuffled_classes(images, rng):
        _, first = np.unique(same[members], return_index=True)
        distinct = same[members[np.sort(first)]]
        if len(distinct) > 1:
            count = min(max(1, round(share * len(distinct))), len(distinct) - 1)
            held[members] = np.isin(same[members], distinct[:count])
    held &= ~np.isin(same, same[~held])
    return images.subset(np.flatnonzero(~held)), images.subset(np.flatnonzero(held))


def limited(images: ImageSet, limit: int, seed: list[int]) -> ImageSet:
    """`limit` images, as nearly equally many of each class as there are."""
    rng = np.random.default_rng(seed)
    members = _shuffled_classes(images, rng)
    turns = [(turn, label) for label, own in enumerate(members) for turn in range(len(own))]
    chosen = [members[label][turn] for turn, label in sorted(turns)[:limit]]
    return images.subset(np.sort(np.asarray(chosen, np.int64)))


def _shuffled_classes(images: ImageSet, rng: np.random.Generator) -> list[np.ndarray]:
    return [
        rng.permutation(np.flatnonzero(images.labels == label))
        for label in range(int(images.labels.max()) + 1)
    ]
