"""The images of a set with their shorter side resized, kept in memory as far as it may go."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from prunion.runtime.base import reader_threads
from prunion.runtime.images import ImageSet

__all__ = ["ImageCache", "resized_in_memory"]


@dataclass
class ImageCache:
    """A set's images with their shorter side resized, kept until they fill `cache_bytes`.

    Resizing is the part of every transform that never changes, so what a transform makes of
    these images is what it makes of the originals, bit for bit. What does not fit is decoded
    each time. Several threads may read at once.
    """

    images: ImageSet
    shorter_side: int
    cache_bytes: int
    _kept: dict[int, Image.Image] = field(default_factory=dict, repr=False)
    _used: int = 0
    _full: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def as_set(self) -> ImageSet:
        """The resized images as a set of their own."""
        return ImageSet(self.images.labels, self.image)

    def image(self, index: int) -> Image.Image:
        """The image at `index`, its shorter side resized with Pillow's bilinear filter."""
        image = self._kept.get(index)
        if image is None:
            image = self.images.image(index)
            image = tv.resize(image, [self.shorter_side], v2.InterpolationMode.BILINEAR)
            self._keep(index, image)
        return image

    def fill(self) -> None:
        """Read what fits, before worker processes start: they share it instead of repeating it."""
        if self._full or len(self._kept) == len(self.images):
            return
        with ThreadPoolExecutor(reader_threads()) as pool:
            for start in range(0, len(self.images), 256):
                list(pool.map(self.image, range(start, min(start + 256, len(self.images)))))
                if self._full:
                    return

    def _keep(self, index: int, image: Image.Image) -> None:
        size = 4 * image.width * image.height  # Pillow pads RGB to four bytes a pixel
        # Without the lock two readers could each find room for the last image that fits.
        with self._lock:
            if index in self._kept:  # another reader decoded it meanwhile
                return
            if self._used + size > self.cache_bytes:
                self._full = True
                return
            self._used += size
            self._kept[index] = image


def resized_in_memory(images: ImageSet, shorter_side: int, cache_bytes: int) -> ImageSet:
    """The same images resized, each read once as long as `cache_bytes` hold it."""
    return ImageCache(images, shorter_side, cache_bytes).as_set()
