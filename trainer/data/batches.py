"""Batches of all domains, the same ones for the same seed, whoever loads them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from prunion.runtime.errors import ConfigError
from prunion.runtime.images import ImageSet
from prunion.trainer.config import RunConfig
from prunion.trainer.data.domains import Domain, domain_key
from prunion.trainer.data.image_cache import ImageCache
from prunion.trainer.data.prefetch import prefetched
from prunion.trainer.data.transforms import (
    EvalTransform,
    TrainTransform,
    normalised,
    train_transform,
)
from prunion.trainer.processes import ALONE, Processes

__all__ = ["Batch", "JointBatches", "batch_sizes", "eval_batches"]

MIN_IMAGES = 4  # of one domain in a batch: BatchNorm needs several
CACHE_BYTES = 1 << 30
ORDER, AUGMENT, ROBIN = 3, 4, 5  # keep the kinds of random numbers apart


@dataclass(frozen=True)
class Batch:
    """Images of one domain: float32 `[n, 3, H, W]`, labels int64 `[n]`.

    Attributes:
        share: of the step's images of this domain those that are here; other processes have the
            rest.
    """

    domain: int
    images: torch.Tensor
    labels: torch.Tensor
    share: float = 1.0

    def split(self, count: int) -> list[Batch]:
        """Its images dealt out to `count` batches, of which the last may have none."""
        if count == 1:
            return [self]
        whole = len(self.labels)
        parts = [slice(i, whole, count) for i in range(count)]
        shares = [self.share * len(range(*p.indices(whole))) / max(1, whole) for p in parts]
        return [
            Batch(self.domain, self.images[part], self.labels[part], share)
            for part, share in zip(parts, shares, strict=True)
        ]

    def pin_memory(self) -> Batch:
        """The same in page-locked memory, where torch sees a GPU."""
        return replace(self, images=self.images.pin_memory(), labels=self.labels.pin_memory())


class JointBatches:
    """The training batches of every domain, epoch by epoch.

    What a step holds is `order`'s: all domains ("joint"), one in turn ("batch"), or one until the
    next takes over ("epoch"). In these three an epoch shows a domain the same images. In the last,
    "round-robin", an epoch is one pass over each set, the sets in an order of its own. Batches
    depend on the seed, the epoch and the step alone, so a run resumes from two integers.
    """

    def __init__(
        self,
        domains: Sequence[Domain],
        config: RunConfig,
        cache_bytes: int = CACHE_BYTES,
        processes: Processes = ALONE,
        *,
        pin: bool = False,
    ) -> None:
        """Up to `cache_bytes` of resized images are kept in memory, over all domains.

        With several `processes` each reads its slice of every batch, or the domains it owns; the
        steps stay the same. `pin` is for batches that go to a GPU.

        Raises ConfigError if a process, or a part of a step, would have too few images.
        """
        self.processes, self.pin, self.seed = processes, pin, config.seed
        self.config = config.train
        self.images = images = [len(domain.train) for domain in domains]
        self.classes = [list(domain.classes) for domain in domains]
        self.digests = [domain.train.digest for domain in domains]
        self.sizes = batch_sizes(images, self.config.batch_size, self.config.balance)
        self._rounds = math.ceil(sum(images) / sum(self.sizes))
        self._check_slices()
        sharers = processes.count if processes.slices else 1  # each keeps images of every domain
        transforms = [train_transform(config.input, d.mirror, d.crop) for d in domains]
        self._caches = [
            ImageCache(domain.train, transform.shorter_side, cache_bytes // len(domains) // sharers)
            for domain, transform in zip(domains, transforms, strict=True)
        ]
        self._streams = [
            _Stream(domain.name, cache.as_set(), transform, config.seed)
            for domain, cache, transform in zip(domains, self._caches, transforms, strict=True)
        ]

    @property
    def steps_per_epoch(self) -> int:
        """How many lists of batches `epoch` yields."""
        if self.config.order == "round-robin":
            return sum(len(_starts(n, self.config.batch_size)) for n in self.images)
        return self._rounds * (1 if self.config.order == "joint" else len(self.sizes))

    def epoch(self, epoch: int, start: int = 0, *, joint: bool = False) -> Iterator[list[Batch]]:
        """The batches of each step from step `start` on; one batch a step unless joint.

        `joint` gives joint steps whatever the run's order.

        Raises DataError, naming it, when an image cannot be decoded.
        """
        if self.config.workers:
            for domain, cache in enumerate(self._caches):
                if self.processes.reads(domain):
                    cache.fill()
        draws = self._draws(epoch, joint)[start:]
        return prefetched(self._read, draws, self.config.workers, pin=self.pin)

    def _draws(self, epoch: int, joint: bool) -> list[list[_Draw]]:
        """What each step of an epoch reads, decided before anybody reads."""
        if not joint and self.config.order == "round-robin":
            sets = np.random.default_rng([self.seed, ROBIN, epoch]).permutation(len(self.images))
            size = self.config.batch_size
            return [[d] for i in sets.tolist() for d in self._streams[i].whole(i, epoch, size)]
        first = epoch * self._rounds
        own = [
            stream.draws(domain, first * size, size, self._rounds)
            for domain, (stream, size) in enumerate(zip(self._streams, self.sizes, strict=True))
        ]
        if not joint and self.config.order == "epoch":
            return [[draw] for draws in own for draw in draws]
        rounds = [list(draws) for draws in zip(*own, strict=True)]
        if joint or self.config.order == "joint":
            return rounds
        return [[draw] for draws in rounds for draw in draws]

    def _check_slices(self) -> None:
        parts, fewest = self.config.accumulate, min(self.sizes)
        if parts > 1 and fewest // parts < MIN_IMAGES:
            raise ConfigError(
                f"[train] accumulate is {parts}, and a step may hold {fewest} images of a domain, "
                f"of which BatchNorm needs {MIN_IMAGES} in each part: give at most "
                f"{fewest // MIN_IMAGES}, or raise batch_size"
            )
        if not self.processes.slices:
            return
        joint, count = self.config.order == "joint", self.processes.count
        least = sum(self.sizes) if joint else min([*self.sizes, MIN_IMAGES])
        if count > least:
            raise ConfigError(
                f"torchrun started {count} processes, and a step of this run may hold {least} "
                f"images: start at most {least}, or raise [train] batch_size"
            )
        fewest = min(self.sizes) // count if joint else least // count
        if not self.config.sync_norms and fewest < MIN_IMAGES:
            raise ConfigError(
                f"[train] sync_norms is false, and a process would have {fewest} images of a "
                f"domain in a step, too few for BatchNorm's statistics below {MIN_IMAGES}: raise "
                "batch_size, start fewer processes, or set sync_norms = true"
            )

    def _read(self, draws: list[_Draw]) -> list[Batch]:
        batches, before = [], 0
        for draw in draws:
            if self.processes.reads(draw.domain):
                own = draw.part(self.processes.slice_of(before, len(draw.images)))
                share = len(own.images) / len(draw.images)
                batches.append(Batch(draw.domain, *self._streams[draw.domain].read(own), share))
            before += len(draw.images)
        return batches


def batch_sizes(images: Sequence[int], batch_size: int, balance: float) -> list[int]:
    """Images per domain in a joint step: `images ** balance` shares of `batch_size` × domains.

    At least four each, so the sum may be a little more than `batch_size` × domains.
    """
    weights = [count**balance for count in images]
    unit = batch_size * len(images) / sum(weights)
    return [max(MIN_IMAGES, round(unit * weight)) for weight in weights]


def _starts(images: int, size: int) -> list[int]:
    """Where the batches of one pass begin; too few images at its end join the batch before."""
    starts = list(range(0, images, size))
    return starts[:-1] if len(starts) > 1 and images - starts[-1] < MIN_IMAGES else starts


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


@dataclass(frozen=True)
class _Draw:
    """A batch before it is read: images `[n]` of a domain, and in which pass each is met `[n]`."""

    domain: int
    passes: np.ndarray
    images: np.ndarray

    def part(self, which: slice) -> _Draw:
        """Some of its images."""
        return _Draw(self.domain, self.passes[which], self.images[which])


@dataclass(frozen=True)
class _Stream:
    """Pass after pass over a domain's images, each in its own order.

    The image at a position, and its crop and mirroring, depend on nothing but the seed, the
    domain's name and the position: not on what was read before, nor on who reads it. So a
    position is all there is to save, and any number of threads or processes may read.
    """

    name: str
    images: ImageSet
    transform: TrainTransform
    seed: int

    def draws(self, domain: int, position: int, size: int, count: int) -> list[_Draw]:
        """`count` batches of `size` images each, from `position` of the stream on."""
        places = np.arange(position, position + size * count)
        passes, places = np.divmod(places, len(self.images))
        chosen = np.empty_like(places)
        for number in np.unique(passes):
            own = passes == number
            chosen[own] = self._order(int(number))[places[own]]
        batches = zip(passes.reshape(count, size), chosen.reshape(count, size), strict=True)
        return [_Draw(domain, *batch) for batch in batches]

    def whole(self, domain: int, number: int, size: int) -> list[_Draw]:
        """All batches of pass `number`: every image once."""
        parts = np.split(self._order(number), _starts(len(self.images), size)[1:])
        return [_Draw(domain, np.full(len(part), number), part) for part in parts]

    def read(self, draw: _Draw) -> tuple[torch.Tensor, torch.Tensor]:
        """Images `[n, 3, H, W]` and labels `[n]` of one batch."""
        drawn = zip(draw.passes.tolist(), draw.images.tolist(), strict=True)
        pixels = [self._pixels(number, index) for number, index in drawn]
        labels = torch.from_numpy(self.images.labels[draw.images])
        return normalised(pixels, self.transform.input), labels

    def _order(self, number: int) -> np.ndarray:
        return self._random(ORDER, number).permutation(len(self.images))

    def _pixels(self, number: int, index: int) -> np.ndarray:
        # The pass is part of the seed: each time an image is met it is cropped anew.
        return self.transform.pixels(self.images.image(index), self._random(AUGMENT, number, index))

    def _random(self, *what: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, domain_key(self.name), *what])
