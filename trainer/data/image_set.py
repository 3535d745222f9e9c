"""An indexed set of labelled images, decoded one at a time, and the part of it kept in memory."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

__all__ = ["ImageCache", "ImageSet", "digest_of"]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images: `labels` is int64 `[N]`, `image(i)` decodes the i-th to RGB.

    Attributes:
        digest: tells the set from others of as many images, as far as opening it has seen them.
    """

    labels: np.ndarray
    read: Callable[[int], Image.Image]
    digest: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        """The image at `index` as PIL RGB. Raises DataError, naming it, if it cannot be decoded."""
        return self.read(index)

    def subset(self, indices: np.ndarray) -> ImageSet:
        """The images at `indices`, in that order."""
        digest = digest_of([self.digest, indices.tobytes().hex()])
        return ImageSet(self.labels[indices], lambda index: self.read(int(indices[index])), digest)


def digest_of(parts: Iterable[object]) -> str:
    """Hex SHA-256 of the parts' texts, line by line."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(f"{part}\n".encode())
    return sha.hexdigest()


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
        with ThreadPoolExecutor() as pool:
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
