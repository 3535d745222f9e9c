"""The batches in which a network is asked whether it answers every image for itself.

What takes one image's numbers into another's answer may be idle in a batch of few: a shift by
twelve places, a sum from the eighth image on. So images that were answered alone are answered again
beside others, in batches whose sizes have no factor in common, the largest beyond a server's 32.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

__all__ = ["beside_others", "bytes_of_image", "compared_batch", "placed_beside"]

SIZES = (5, 7)
LARGEST, SMALLEST = 33, 8
MOST_BYTES = 1 << 30  # that a batch's activations may take: fewer of large images


def bytes_of_image(height: int, width: int) -> int:
    """About what the activations of one image take at a time: 100 float32 channels at full size."""
    return 400 * height * width


def compared_batch(size: int) -> int:
    """The batch that is compared where `size` images are answered at once: the least that holds
    them of 33, 67, 135 and so on, so that sizes that grow are compared a few times only."""
    largest = LARGEST
    while largest < size:
        largest = 2 * largest + 1
    return largest


def beside_others(
    count: int, height: int, width: int, takes: tuple[int, int] = (1, LARGEST)
) -> Iterator[np.ndarray]:
    """The rows of each batch, out of `count` images, which stand in no order: whichever are shifted
    by however many places, others come to stand there. Each image is in one of the largest.

    Args:
        takes: the least and the most images that can be answered at a time.
    """
    largest = MOST_BYTES // bytes_of_image(height, width)
    largest = min(LARGEST, max(largest, SMALLEST))
    sizes = sorted({min(max(size, takes[0]), takes[1]) for size in (*SIZES, largest)})
    for size in sizes[:-1]:
        yield placed_beside(count, size)[0]
    yield from placed_beside(count, sizes[-1])


def placed_beside(count: int, size: int) -> np.ndarray:
    """`[batches, size]`: rows of as many batches as every one of `count` images finds a place in.

    An image stands as often as any other, or once more.
    """
    random, batches = np.random.default_rng(size), -(-count // size)
    rounds = -(-batches * size // count)
    order = np.concatenate([random.permutation(count) for _ in range(rounds)])
    return order[: batches * size].reshape(batches, size)
