"""Batches of all domains, the same ones for the same seed, whoever loads them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from prunion.trainer.config.run import RunConfig
from prunion.trainer.data.domains import Domain, domain_key
from prunion.trainer.data.image_set import ImageCache, ImageSet
from prunion.trainer.data.prefetch import prefetched
from prunion.trainer.data.transforms import (
    EvalTransform,
    TrainTransform,
    normalised,
    train_transform,
)
from prunion.trainer.ranks import ALONE, Ranks

__all__ = ["Batch", "DomainStream", "JointBatches", "batch_sizes", "eval_batches"]


MIN_IMAGES = 4  # of one domain in a batch: BatchNorm needs several
CACHE_BYTES = 1 << 30


@dataclass(frozen=True)
class Batch:
    """Images of one domain: float32 `[n, 3, H, W]`, labels int64 `[n]`."""

    domain: int
    images: torch.Tensor
    labels: torch.Tensor

    def pin_memory(self) -> Batch:
        """The same in page-locked memory, where torch sees a GPU."""
        return replace(self, images=self.images.pin_memory(), labels=self.labels.pin_memory())


@dataclass(frozen=True)
class Draw:
    """A batch before it is read: `count` images from `position` of a domain's stream."""

    domain: int
    position: int
    count: int


class JointBatches:
    """The training batches of every domain, epoch by epoch.

    In every `order` an epoch shows a domain the same images; only what a step holds differs: all
    domains ("joint"), one in turn ("batch"), or one until the next takes over ("epoch"). Batches
    depend on the seed, the epoch and the step alone, so a run resumes from two integers.
    """

    def __init__(
        self,
        domains: Sequence[Domain],
        config: RunConfig,
        cache_bytes: int = CACHE_BYTES,
        ranks: Ranks = ALONE,
        *,
        pin: bool = False,
    ) -> None:
        """Up to `cache_bytes` of resized images are kept in memory, over all domains.

        With several `ranks` each reads the domains it owns; the steps stay the same. `pin` is for
        batches that go to a GPU.
        """
        self.ranks, self.pin = ranks, pin
        self.config = config.train
        self.images = images = [len(domain.train) for domain in domains]
        self.classes = [list(domain.classes) for domain in domains]
        self.digests = [domain.train.digest for domain in domains]
        self.sizes = batch_sizes(images, self.config.batch_size, self.config.balance)
        self._rounds = math.ceil(sum(images) / sum(self.sizes))
        transforms = [train_transform(config.input, d.mirror, d.crop) for d in domains]
        self._caches = [
            ImageCache(domain.train, transform.shorter_side, cache_bytes // len(domains))
            for domain, transform in zip(domains, transforms, strict=True)
        ]
        self._streams = [
            DomainStream(domain.name, cache.as_set(), transform, config.seed)
            for domain, cache, transform in zip(domains, self._caches, transforms, strict=True)
        ]

    @property
    def steps_per_epoch(self) -> int:
        """How many lists of batches `epoch` yields."""
        return self._rounds * (1 if self.config.order == "joint" else len(self.sizes))

    def epoch(self, epoch: int, start: int = 0, *, joint: bool = False) -> Iterator[list[Batch]]:
        """The batches of each step from step `start` on; one batch a step unless joint.

        `joint` gives joint steps whatever the run's order.

        Raises DataError, naming it, when an image cannot be decoded.
        """
        if self.config.workers:
            for domain, cache in enumerate(self._caches):
                if self.ranks.owns(domain):
                    cache.fill()
        draws = self._draws(epoch, joint)[start:]
        return prefetched(self._read, draws, self.config.workers, pin=self.pin)

    def _draws(self, epoch: int, joint: bool) -> list[list[Draw]]:
        rounds = [
            [
                Draw(domain, (epoch * self._rounds + turn) * size, size)
                for domain, size in enumerate(self.sizes)
            ]
            for turn in range(self._rounds)
        ]
        if joint or self.config.order == "joint":
            return rounds
        if self.config.order == "batch":
            return [[draw] for step in rounds for draw in step]
        return [[step[domain]] for domain in range(len(self.sizes)) for step in rounds]

    def _read(self, draws: list[Draw]) -> list[Batch]:
        return [
            Batch(draw.domain, *self._streams[draw.domain].take(draw.position, draw.count))
            for draw in draws
            if self.ranks.owns(draw.domain)
        ]


def batch_sizes(images: Sequence[int], batch_size: int, balance: float) -> list[int]:
    """Images per domain in a joint step: `images ** balance` shares of `batch_size` × domains.

    At least four each, so the sum may be a little more than `batch_size` × domains.
    """
    weights = [count**balance for count in images]
    unit = batch_size * len(images) / sum(weights)
    return [max(MIN_IMAGES, round(unit * weight)) for weight in weights]


def eval_batches(
    images: ImageSet,
    transform: EvalTransform,
    batch_size: int,
    workers: int = 0,
    *,
    pin: bool = False,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Every image once, in order: views `[n · crops, 3, H, W]` and labels `[n]`.

    `batch_size` counts images; the last batch may be shorter. An image's views stand together.
    `pin` is for batches that go to a GPU.
    """

    def read(start: int) -> tuple[torch.Tensor, torch.Tensor]:
        stop = min(start + batch_size, len(images))
        views = [transform.pixels(images.image(index)) for index in range(start, stop)]
        pixels = np.concatenate(views)
        return normalised(pixels, transform.input), torch.from_numpy(images.labels[start:stop])

    return prefetched(read, list(range(0, len(images), batch_size)), workers, pin=pin)


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
