"""Batches of all domains, the same ones for the same seed, whoever loads them."""

from __future__ import annotations

import math
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from prunion.runtime.errors import PrunionError
from prunion.runtime.images import ImageSet
from prunion.trainer.config import RunConfig
from prunion.trainer.data.domains import Domain, domain_key
from prunion.trainer.data.image_cache import ImageCache
from prunion.trainer.data.transforms import (
    EvalTransform,
    TrainTransform,
    normalised,
    train_transform,
)
from prunion.trainer.processes import ALONE, Processes

__all__ = ["Batch", "JointBatches", "batch_sizes", "eval_batches", "prefetched"]

MIN_IMAGES = 4  # of one domain in a batch: BatchNorm needs several
CACHE_BYTES = 1 << 30
ORDER, AUGMENT = 3, 4  # keep the two kinds of random numbers apart
AHEAD = 2  # batches that are read before they are asked for, by each reader

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Batch:
    """Images of one domain: float32 `[n, 3, H, W]`, labels int64 `[n]`."""

    domain: int
    images: torch.Tensor
    labels: torch.Tensor

    def pin_memory(self) -> Batch:
        """The same in page-locked memory, where torch sees a GPU."""
        return replace(self, images=self.images.pin_memory(), labels=self.labels.pin_memory())


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
        processes: Processes = ALONE,
        *,
        pin: bool = False,
    ) -> None:
        """Up to `cache_bytes` of resized images are kept in memory, over all domains.

        With several `processes` each reads the domains it owns; the steps stay the same. `pin` is
        for batches that go to a GPU.
        """
        self.processes, self.pin = processes, pin
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
            _Stream(domain.name, cache.as_set(), transform, config.seed)
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
                if self.processes.owns(domain):
                    cache.fill()
        draws = self._draws(epoch, joint)[start:]
        return prefetched(self._read, draws, self.config.workers, pin=self.pin)

    def _draws(self, epoch: int, joint: bool) -> list[list[_Draw]]:
        """What each step of an epoch reads, decided before anybody reads."""
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

    def _read(self, draws: list[_Draw]) -> list[Batch]:
        return [
            Batch(draw.domain, *self._streams[draw.domain].read(draw))
            for draw in draws
            if self.processes.owns(draw.domain)
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


@dataclass(frozen=True)
class _Draw:
    """A batch before it is read: images `[n]` of a domain, and in which pass each is met `[n]`."""

    domain: int
    passes: np.ndarray
    images: np.ndarray


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


def prefetched(
    read: Callable[[Item], Result], items: Sequence[Item], workers: int, *, pin: bool = False
) -> Iterator[Result]:
    """`read(item)` for every item, in order, a few ahead of what is asked for.

    `read` must depend on its item alone: then 0 workers (one thread) and many (processes) give
    the same results. An error of `read` is raised in its place.

    Args:
        pin: put results into page-locked memory, from which a GPU copies without a detour. They
            must be tensors, things with a `pin_memory` of their own, or lists and tuples of those.
    """
    if workers and "fork" in multiprocessing.get_all_start_methods():
        return _by_processes(read, items, workers, pin)
    # Without fork the images' mapped file cannot be handed over: read with threads instead.
    return _by_threads((lambda item: _pinned(read(item))) if pin else read, items, max(1, workers))


def _pinned(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_pinned(part) for part in value)
    return value.pin_memory()


def _by_threads(
    read: Callable[[Item], Result], items: Sequence[Item], workers: int
) -> Iterator[Result]:
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(read, item))
                if len(waiting) > AHEAD * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


class _Reads(Dataset[object]):
    """`read(items[i])`, with the user's errors handed back whole instead of as a traceback."""

    def __init__(self, read: Callable[[Any], object], items: Sequence[Any]) -> None:
        self.read, self.items = read, items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> object:
        try:
            return self.read(self.items[index])
        except PrunionError as exc:
            return exc


def _by_processes(
    read: Callable[[Item], Result], items: Sequence[Item], workers: int, pin: bool
) -> Iterator[Result]:
    loader = DataLoader(
        _Reads(read, items),
        batch_size=None,
        num_workers=workers,
        pin_memory=pin,
        multiprocessing_context="fork",
        # The loader draws a seed: not from the generator that the training loop uses.
        generator=torch.Generator(),
    )
    for result in loader:
        if isinstance(result, PrunionError):
            raise result
        yield result
