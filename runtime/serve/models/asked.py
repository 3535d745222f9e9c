"""The images of a request: what is asked of them, made ready for the graph, and their answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prunion.runtime.batching import Decoder, Job
from prunion.runtime.errors import InputError
from prunion.runtime.graph import GraphForm
from prunion.runtime.protocol import USUAL_PRIORITY

__all__ = ["Answered", "Asked", "prepared"]

INLINE = 1 << 20  # bytes that are checked on the event loop; more go to a thread


@dataclass(frozen=True, eq=False)
class Asked:
    """Images to be answered.

    Attributes:
        images: raw, or encoded.
        arrived: when the request did, in ns of `time.perf_counter_ns`.
        domain: of all images; empty where `domains` names each image's.
        left: how many seconds the client still waits.
    """

    images: np.ndarray | list[bytes]
    arrived: int
    domain: str = ""
    domains: Sequence[int] | Sequence[str] = ()
    left: float = math.inf
    priority: int = USUAL_PRIORITY


@dataclass(frozen=True, eq=False)
class Answered:
    """Their logits, by the bundle that answered in the end, and when they were decoded for it.

    Attributes:
        strange: which images hold numbers that no pixels have; "" if none does.
    """

    logits: np.ndarray
    job: Job
    decoded: int
    strange: str


async def prepared(
    images: np.ndarray | list[bytes], form: GraphForm, decoder: Decoder
) -> tuple[np.ndarray, str]:
    """`[N, ...]` as the graph takes them, and which of them hold numbers that no pixels have.

    Raises InputError for what is no image, or no number.
    """
    ready = isinstance(images, np.ndarray) and (
        images.dtype != np.uint8 or (images.shape[1:] == form.image_shape and form.spec.keeps_whole)
    )
    if not ready:
        if isinstance(images, np.ndarray) and (images.shape[3] != 3 or not images.size):
            raise InputError(f"`image` is {list(images.shape)}: raw images are [N, H, W, 3] RGB")
        return await decoder.images(images, form), ""
    assert isinstance(images, np.ndarray)

    def checked() -> tuple[np.ndarray, str]:
        array = form.prepare(images)
        return array, form.strange(array)

    return checked() if images.nbytes <= INLINE else await decoder.run(checked)
