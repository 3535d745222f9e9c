"""An endless, seeded order over one domain's training images."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from prunion.trainer.domains import domain_key
from prunion.trainer.image_set import ImageSet
from prunion.trainer.transforms import TrainTransform, normalised

__all__ = ["DomainStream"]

ORDER, AUGMENT = 3, 4  # keep the two kinds of random numbers apart


@dataclass
class DomainStream:
    """Pass after pass over `images`, each in its own order.

    The image at a position, and its crop and mirroring, depend on nothing but the seed, the
    domain's name and the position: not on what was read before, nor on who reads it. So a
    position is all there is to save, and worker processes change nothing.
    """

    name: str
    images: ImageSet
    transform: TrainTransform
    seed: int
    _orders: dict[int, np.ndarray] = field(default_factory=dict, repr=False)

    def take(self, position: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Images `[count, 3, H, W]` and labels `[count]` from `position` of the stream on."""
        drawn = [self._at(place) for place in range(position, position + count)]
        pixels = [self._pixels(turn, index) for turn, index in drawn]
        labels = self.images.labels[[index for _, index in drawn]]
        return normalised(pixels, self.transform.input), torch.from_numpy(labels)

    def _at(self, position: int) -> tuple[int, int]:
        """Which pass a position falls in, and which image it is."""
        turn, place = divmod(position, len(self.images))
        return turn, int(self._order(turn)[place])

    def _order(self, turn: int) -> np.ndarray:
        order = self._orders.get(turn)
        if order is None:
            rng = np.random.default_rng([self.seed, domain_key(self.name), ORDER, turn])
            order = rng.permutation(len(self.images))
            # A batch spans two passes at most, unless the domain is smaller than the batch.
            while len(self._orders) > 1:
                del self._orders[min(self._orders)]
            self._orders[turn] = order
        return order

    def _pixels(self, turn: int, index: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, domain_key(self.name), AUGMENT, turn, index])
        return self.transform.pixels(self.images.image(index), rng)
