"""Images of one domain as a step takes them: whole, one process's slice, or a part in turn."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate

import torch

__all__ = ["Batch"]


@dataclass(frozen=True)
class Batch:
    """Images of one domain: float32 `[n, 3, H, W]`, labels int64 `[n]`.

    Attributes:
        share: of the step's images of this domain those that are here; other processes have the
            rest.
        others: labels of what the images are mixed with, int64 `[n]`; None where nothing is mixed.
        kept: share of every image that is its own, and of its label.
        parts: how many of the images, one after the other, are of each part of the step; empty
            where it has one part.
    """

    domain: int
    images: torch.Tensor
    labels: torch.Tensor
    share: float = 1.0
    others: torch.Tensor | None = None
    kept: float = 1.0
    parts: tuple[int, ...] = ()

    def split(self) -> list[Batch]:
        """Its parts, of which some may have no images: other processes have these."""
        if not self.parts:
            return [self]
        whole, ends = len(self.labels), list(accumulate(self.parts))
        parts = [slice(end - size, end) for end, size in zip(ends, self.parts, strict=True)]
        shares = [self.share * size / max(1, whole) for size in self.parts]
        return [
            replace(
                self,
                images=self.images[part],
                labels=self.labels[part],
                others=None if self.others is None else self.others[part],
                share=share,
                parts=(),
            )
            for part, share in zip(parts, shares, strict=True)
        ]

    def pin_memory(self) -> Batch:
        """The same in page-locked memory, where torch sees a GPU."""
        others = None if self.others is None else self.others.pin_memory()
        images, labels = self.images.pin_memory(), self.labels.pin_memory()
        return replace(self, images=images, labels=labels, others=others)
