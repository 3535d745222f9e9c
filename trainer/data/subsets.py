"""Subsets of a set of images: a share of each class, or a few images of each."""

from __future__ import annotations

import numpy as np

from prunion.runtime.images import ImageSet

__all__ = ["held_out", "limited"]


def held_out(images: ImageSet, share: float, seed: list[int]) -> tuple[ImageSet, ImageSet]:
    """Split off a share of each class, at least one image where there are two.

    Of an image that is there again no copy is held out while another stays: it would be known.
    """
    rng = np.random.default_rng(seed)
    test: list[int] = []
    for members in _shuffled_classes(images, rng):
        if len(members) > 1:
            count = min(max(1, round(share * len(members))), len(members) - 1)
            test += members[:count].tolist()
    held = np.zeros(len(images), bool)
    held[test] = True
    if images.same is not None:
        held &= ~np.isin(images.same, images.same[~held])
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
