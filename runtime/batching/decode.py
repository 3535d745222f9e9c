"""Images decoded beside the event loop: in parallel, and within a budget of pixels at a time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import numpy as np

from prunion.runtime.base import usable_cores
from prunion.runtime.errors import InputError, OverloadError
from prunion.runtime.graph import GraphForm
from prunion.runtime.images import ImageFault, read_image, to_batch, to_pixels

__all__ = ["Budget", "Decoder"]

Result = TypeVar("Result")

# Others take 5 to 12 bytes a pixel while they are decoded, WebP 16: libwebp keeps two canvases.
DEARER = {"WEBP": 2}


class Budget:
    """An amount that those at work share; whoever asks for more than is left waits.

    Raises OverloadError, reason `memory`, after `patience` seconds in vain.
    """

    def __init__(self, amount: int, patience: float = 10.0) -> None:
        self.amount = self.left = amount
        self.patience = patience
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, amount: int) -> Iterator[None]:
        """Have `amount` of it while the block runs; all of it for whoever asks for more."""
        amount = min(amount, self.amount)
        with self._changed:
            if not self._changed.wait_for(lambda: self.left >= amount, self.patience):
                raise OverloadError("too much is decoded at once: try again later", "memory")
            self.left -= amount
        try:
            yield
        finally:
            with self._changed:
                self.left += amount
                self._changed.notify_all()


class Decoder:
    """A bounded pool of threads.

    Args:
        threads: how many images are decoded at a time; None for the cores that the process has.
        max_pixels: most pixels of one image.
        pixels: most pixels of all images that are decoded at a time; a WebP's count twice.
    """

    def __init__(
        self, threads: int | None = None, max_pixels: int = 25_000_000, pixels: int = 50_000_000
    ) -> None:
        self.max_pixels = max_pixels
        self.budget = Budget(pixels)
        count = threads or usable_cores()
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="decode")

    async def run(self, call: Callable[..., Result], *arguments: object) -> Result:
        """`call(*arguments)` on one of the threads."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, call, *arguments)

    async def images(self, items: Sequence[bytes] | np.ndarray, form: GraphForm) -> np.ndarray:
        """Encoded images, or `[N, h, w, 3]` uint8 → `[N, ...]` as the graph takes them.

        Decoded and resized exactly as training did it. Raises InputError naming the image.
        """
        jobs = [self.run(self._one, item, form, n, len(items)) for n, item in enumerate(items)]
        found = await asyncio.gather(*jobs, return_exceptions=True)
        for answer in found:
            if isinstance(answer, BaseException):
                raise answer
        return np.stack([answer for answer in found if not isinstance(answer, BaseException)])

    def close(self) -> None:
        """End the threads when they have finished what they do."""
        self._pool.shutdown(wait=False)

    def _one(self, item: bytes | np.ndarray, form: GraphForm, place: int, count: int) -> np.ndarray:
        try:
            width, height, dearer = self._size(item)
            if width * height > self.max_pixels:
                raise InputError(
                    f"the image is {width}×{height}: this server takes {self.max_pixels} pixels at "
                    "most, scale it down"
                )
            with self.budget.hold(width * height * dearer):
                read = to_pixels if form.image == "uint8" else to_batch
                row: np.ndarray = form.prepare(read([item], form.spec))[0]
                return row
        except InputError as exc:
            raise InputError(f"image {place}: {exc}" if count > 1 else str(exc)) from None

    def _size(self, item: bytes | np.ndarray) -> tuple[int, int, int]:
        """Width and height, and how many times its pixels count."""
        if isinstance(item, np.ndarray):
            return item.shape[1], item.shape[0], 1
        try:
            return read_image(item, lambda image: (*image.size, DEARER.get(image.format or "", 1)))
        except ImageFault:
            return 0, 0, 1  # decoding says what is wrong with it
