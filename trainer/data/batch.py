"""Images of one domain as a step takes them: whole, one process's slice, or a part in turn."""

from __future__ import annotations

from dataclasses import dataclass, replace

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
    """

    domain: int
    images: torch.Tensor
    labels: torch.Tensor
    share: float = 1.0
    others: torch.Tensor | None = None
    kept: float = 1.0

    def split(self, count: int) -> list[Batch]:
        """Its images dealt out to `count` batches, of which the last may have none."""
        if count == 1:
            return [self]
        whole = len(self.labels)
        parts = [slice(i, whole, count) for i in range(count)]
        shares = [self.share * len(range(*p.indices(whole))) / max(1, whole) for p in parts]
        return [
            replace(
                self,
                images=self.images[part],
                labels=self.labels[part],
                others=None if self.others is None else self.others[part],
                share=share,
            )
            for part, share in zip(parts, shares, strict=True)
        ]

    def pin_memory(self) -> Batch:
        """The same in page-locked memory, where torch sees a GPU."""
        others = None if self.others is None else self.others.pin_memory()
        images, labels = self.images.pin_memory(), self.labels.pin_memory()
        return replace(self, images=images, labels=labels, others=others)
