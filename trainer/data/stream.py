"""The images of one domain, pass after pass: which ones a batch holds, and how each is changed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from prunion.runtime.images import ImageSet
from prunion.trainer.data.augment import Mix, draw_mix
from prunion.trainer.data.batch import Batch
from prunion.trainer.data.domains import domain_key
from prunion.trainer.data.transforms import TrainTransform, normalised

__all__ = ["MIN_IMAGES", "ROBIN", "Draw", "Stream", "pass_starts"]

MIN_IMAGES = 4  # of one domain in a batch: BatchNorm needs several
ORDER, AUGMENT, ROBIN, MIX = 3, 4, 5, 6  # keep the kinds of random numbers apart


def pass_starts(images: int, size: int) -> list[int]:
    """Where the batches of one pass begin; too few images at its end join the batch before."""
    starts = list(range(0, images, size))
    return starts[:-1] if len(starts) > 1 and images - starts[-1] < MIN_IMAGES else starts


@dataclass(frozen=True)
class Draw:
    """A batch before it is read: images `[n]` of a domain, and in which pass each is met `[n]`."""

    domain: int
    passes: np.ndarray
    images: np.ndarray

    def part(self, which: slice | np.ndarray) -> Draw:
        """Some of its images."""
        return Draw(self.domain, self.passes[which], self.images[which])


@dataclass(frozen=True)
class Stream:
    """Pass after pass over a domain's images, each in its own order.

    The image at a position, and its crop and mirroring, depend on nothing but the seed, the
    domain's name and the position: not on what was read before, nor on who reads it. So a
    position is all there is to save, and any number of threads or processes may read.
    """

    name: str
    images: ImageSet
    transform: TrainTransform
    seed: int

    def draws(self, domain: int, position: int, size: int, count: int) -> list[Draw]:
        """`count` batches of `size` images each, from `position` of the stream on."""
        places = np.arange(position, position + size * count)
        passes, places = np.divmod(places, len(self.images))
        chosen = np.empty_like(places)
        for number in np.unique(passes):
            own = passes == number
            chosen[own] = self._order(int(number))[places[own]]
        batches = zip(passes.reshape(count, size), chosen.reshape(count, size), strict=True)
        return [Draw(domain, *batch) for batch in batches]

    def whole(self, domain: int, number: int, size: int) -> list[Draw]:
        """All batches of pass `number`: every image once."""
        parts = np.split(self._order(number), pass_starts(len(self.images), size)[1:])
        return [Draw(domain, np.full(len(part), number), part) for part in parts]

    def read(self, draw: Draw, part: np.ndarray) -> Batch:
        """The images of one batch at the places `part` `[n]` of it, in that order."""
        own = draw.part(part)
        share, mix = len(own.images) / len(draw.images), self._mix(draw)
        if mix is None or not len(own.images):
            return Batch(draw.domain, *self._read(own), share)
        # How a batch is mixed depends on the whole of it, so partners may lie outside the part.
        needed, found = np.unique([part, mix.partners[part]], return_inverse=True)
        images, labels = self._read(draw.part(needed))
        mine, theirs = found.reshape(2, -1)
        mixed = mix(images[mine], images[theirs])
        return Batch(draw.domain, mixed, labels[mine], share, labels[theirs], mix.kept)

    def _read(self, draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
        """Images `[n, 3, H, W]` and labels `[n]`."""
        drawn = zip(draw.passes.tolist(), draw.images.tolist(), strict=True)
        pixels = [self._pixels(number, index) for number, index in drawn]
        labels = torch.from_numpy(self.images.labels[draw.images])
        return normalised(pixels, self.transform.input), labels

    def _mix(self, draw: Draw) -> Mix | None:
        # The first image and its pass tell a batch from all others of the run.
        rng = self._random(MIX, int(draw.passes[0]), int(draw.images[0]))
        size = self.transform.input.size
        return draw_mix(self.transform.augment, len(draw.images), size, rng)

    def _order(self, number: int) -> np.ndarray:
        return self._random(ORDER, number).permutation(len(self.images))

    def _pixels(self, number: int, index: int) -> np.ndarray:
        # The pass is part of the seed: each time an image is met it is cropped anew.
        return self.transform.pixels(self.images.image(index), self._random(AUGMENT, number, index))

    def _random(self, *what: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, domain_key(self.name), *what])
