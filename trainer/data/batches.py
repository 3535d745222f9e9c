"""Batches of all domains, the same ones for the same seed, whoever loads them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from prunion.runtime.errors import ConfigError
from prunion.runtime.images import ImageSet
from prunion.trainer.config import BY_PASSES, IN_TURNS, RunConfig
from prunion.trainer.data.batch import Batch
from prunion.trainer.data.domains import Domain
from prunion.trainer.data.image_cache import ImageCache
from prunion.trainer.data.prefetch import prefetched
from prunion.trainer.data.stream import MIN_IMAGES, ROBIN, Draw, Stream, pass_starts
from prunion.trainer.data.transforms import EvalTransform, normalised, train_transform
from prunion.trainer.processes import ALONE, Processes

__all__ = ["JointBatches", "batch_sizes", "eval_batches"]

CACHE_BYTES = 1 << 30


class JointBatches:
    """The training batches of every domain, epoch by epoch.

    What a step holds is `order`'s: all domains ("joint"), one in turn ("batch"), or one until the
    next takes over ("epoch"). In these three an epoch shows a domain the same images. In
    "round-robin" an epoch is one pass over each set, the sets in an order of its own; in "tasks" a
    domain has all its steps before the next has one, in "task-passes" all its passes. Batches
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
        norms: bool = True,
    ) -> None:
        """Up to `cache_bytes` of resized images are kept in memory, over all domains.

        With several `processes` each reads its slice of every batch, or the domains it owns; the
        steps stay the same. `pin` is for batches that go to a GPU, and `norms` whether the network
        has BatchNorm, which takes its statistics of several images.

        Raises ConfigError if a process, or a part of a step, would have too few images.
        """
        self.processes, self.pin, self.seed = processes, pin, config.seed
        self.config = config.train
        self.images = images = [len(domain.train) for domain in domains]
        self.classes = [list(domain.classes) for domain in domains]
        self.digests = [domain.train.digest for domain in domains]
        self.sizes = batch_sizes(images, self.config.batch_size, self.config.balance)
        self._rounds = math.ceil(sum(images) / sum(self.sizes))
        self._check_slices(norms)
        sharers = processes.count if processes.slices else 1  # each keeps images of every domain
        own = {d.name: (d.augment, d.mean) for d in config.domains}
        transforms = []
        for domain in domains:
            augment, mean = own.get(domain.name, (None, None))
            augment = augment or self.config.augment
            transforms.append(
                train_transform(config.input, domain.mirror, domain.crop, augment, mean)
            )
        self._caches = [
            ImageCache(domain.train, transform.shorter_side, cache_bytes // len(domains) // sharers)
            for domain, transform in zip(domains, transforms, strict=True)
        ]
        self._streams = [
            Stream(domain.name, cache.as_set(), transform, config.seed)
            for domain, cache, transform in zip(domains, self._caches, transforms, strict=True)
        ]

    @property
    def steps_per_epoch(self) -> int:
        """How many lists of batches `epoch` yields."""
        if self.config.order in BY_PASSES:
            return sum(len(pass_starts(n, self.config.batch_size)) for n in self.images)
        return self._rounds * (1 if self.config.order == "joint" else len(self.sizes))

    @property
    def own_sizes(self) -> list[int]:
        """Images of each domain in a step that has some of it, as the order has it."""
        if self.config.order in BY_PASSES:
            return [min(n, self.config.batch_size) for n in self.images]
        return self.sizes

    @property
    def turns_per_epoch(self) -> list[int]:
        """Steps of an epoch of each domain's own, turn by turn; empty where there are no turns."""
        if self.config.order not in IN_TURNS:
            return []
        if self.config.order == "tasks":
            return [self._rounds] * len(self.images)
        return [len(pass_starts(self.images[i], self.config.batch_size)) for i in self._turns()]

    @property
    def least_per_epoch(self) -> int:
        """Steps of an epoch that have images of a domain: the fewest that any domain has."""
        if self.config.order in BY_PASSES:
            return min(len(pass_starts(n, self.config.batch_size)) for n in self.images)
        return self._rounds

    def parts(self, batches: Sequence[Batch]) -> list[Sequence[Batch]]:
        """A step in the parts that are computed one after the other, for less memory.

        Also of a joint step in a run whose own steps hold one domain each: its parts hold one, too,
        so that ranking takes no more memory than training.
        """
        joint = self.config.order == "joint"
        together = [batches] if joint else [[batch] for batch in batches]
        split = ([batch.split() for batch in group] for group in together)
        return [list(part) for parts in split for part in zip(*parts, strict=True)]

    def _turns(self) -> list[int]:
        """The domains in the order of their turns."""
        turns = list(range(len(self.images)))
        return turns[::-1] if self.config.packnet_order == "reversed" else turns

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

    def _draws(self, epoch: int, joint: bool) -> list[list[Draw]]:
        """What each step of an epoch reads, decided before anybody reads."""
        if not joint and self.config.order == "round-robin":
            sets = np.random.default_rng([self.seed, ROBIN, epoch]).permutation(len(self.images))
            size = self.config.batch_size
            return [[d] for i in sets.tolist() for d in self._streams[i].whole(i, epoch, size)]
        if not joint and self.config.order == "tasks":
            return self._in_turn(epoch)
        if not joint and self.config.order == "task-passes":
            return self._passes_in_turn(epoch)
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

    def _in_turn(self, epoch: int) -> list[list[Draw]]:
        """Steps of the run's present domain, or of two where its turn ends within the epoch."""
        count, turn = len(self.sizes), self.config.epochs * self._rounds
        turns = self._turns()
        found: list[list[Draw]] = []
        while len(found) < count * self._rounds:
            place, done = divmod(epoch * count * self._rounds + len(found), turn)
            steps = min(turn - done, count * self._rounds - len(found))
            domain, size = turns[place], self.sizes[turns[place]]
            draws = self._streams[domain].draws(domain, done * size, size, steps)
            found += [[draw] for draw in draws]
        return found

    def _passes_in_turn(self, epoch: int) -> list[list[Draw]]:
        """The same where a turn is so many passes over the domain's own images."""
        first, size, begin = epoch * self.steps_per_epoch, self.config.batch_size, 0
        found: list[list[Draw]] = []
        for domain, steps in zip(self._turns(), self.turns_per_epoch, strict=True):
            for number in range(self.config.epochs):
                start, stop = (x - begin for x in (first, first + self.steps_per_epoch))
                if start < steps and stop > 0:
                    draws = self._streams[domain].whole(domain, number, size)
                    found += [[draw] for draw in draws[max(0, start) : stop]]
                begin += steps
        return found

    def _check_slices(self, norms: bool) -> None:
        parts, fewest, each = self.config.accumulate, self._fewest(), MIN_IMAGES if norms else 1
        if parts > 1 and fewest // parts < each:
            who = f"BatchNorm needs {each} in each part" if norms else "each part needs one"
            raise ConfigError(
                f"[train] accumulate is {parts}, and a step may hold {fewest} images of a domain, "
                f"of which {who}: give at most {max(1, fewest // each)}, or raise batch_size"
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
        fewest = (min(self.sizes) if joint else least) // parts // count
        if norms and not self.config.sync_norms and fewest < MIN_IMAGES:
            raise ConfigError(
                f"[train] sync_norms is false, and a process would have {fewest} images of a "
                f"domain in a step, too few for BatchNorm's statistics below {MIN_IMAGES}: raise "
                "batch_size, start fewer processes, or set sync_norms = true"
            )

    def _fewest(self) -> int:
        """Of a domain, the fewest images that a step may hold."""
        if self.config.order not in BY_PASSES:
            return min(self.sizes)
        passes = (np.diff([*pass_starts(n, self.config.batch_size), n]) for n in self.images)
        return min(*self.sizes, *(int(x.min()) for x in passes))  # joint steps rank the units

    def _read(self, draws: list[Draw]) -> list[Batch]:
        """What is this process's of a step, part by part: each part is dealt out to all of them."""
        batches, before, count = [], 0, self.config.accumulate
        for draw in draws:
            own, sizes = [], []
            for number in range(count):
                part = np.arange(number, len(draw.images), count)
                own.append(part[self.processes.slice_of(before, len(part))])
                sizes.append(len(own[-1]))
                before += len(part)
            if self.processes.reads(draw.domain):
                batch = self._streams[draw.domain].read(draw, np.concatenate(own))
                batches.append(replace(batch, parts=tuple(sizes)) if count > 1 else batch)
        return batches


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
