"""Three small domains in batches, and what was in these."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from prunion.trainer.config import (
    BackboneConfig,
    BudgetConfig,
    DomainConfig,
    InputConfig,
    RunConfig,
    TrainConfig,
)
from prunion.trainer.data import Batch, Domain, ImageSet
from tests.support.images import picture

__all__ = ["flat", "image_set", "run", "three_domains"]


def image_set(count: int, first: int) -> ImageSet:
    return ImageSet(np.arange(count) % 3, lambda index: picture(first + index))


def three_domains() -> list[Domain]:
    """Three domains of 40, 23 and 7 images, whose labels tell images apart modulo three."""
    return [
        Domain(name, ("a", "b", "c"), image_set(count, 100 * i), image_set(9, 0), True, True)
        for i, (name, count) in enumerate([("one", 40), ("two", 23), ("three", 7)])
    ]


def run(order: str = "joint", seed: int = 0, workers: int = 0, size: int = 8) -> RunConfig:
    return RunConfig(
        BackboneConfig("resnet18"),
        BudgetConfig(0.5),
        tuple(DomainConfig(name, train=("a",), test=("b",)) for name in ("one", "two", "three")),
        InputConfig(size=(16, 16)),
        TrainConfig(order=order, batch_size=size, workers=workers),
        seed=seed,
    )


def flat(steps: Iterable[list[Batch]]) -> list[tuple[int, bytes, bytes]]:
    return [
        (batch.domain, batch.images.numpy().tobytes(), batch.labels.numpy().tobytes())
        for step in steps
        for batch in step
    ]
