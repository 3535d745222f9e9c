"""An indexed set of labelled images, decoded one at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

__all__ = ["ImageCache", "ImageSet"]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images: `labels` is int64 `[N]`, `image(i)` decodes the i-th to RGB."""

    labels: np.ndarray
    read: Callable[[int], Image.Image]

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        """The image at `index` as PIL RGB. Raises DataError, naming it, if it cannot be decoded."""
        return self.read(index)

    def subset(self, indices: np.ndarray) -> ImageSet:
        """The images at `indices`, in that order."""
        return ImageSet(self.labels[indices], lambda index: self.read(int(indices[index])))

    def resized(self, shorter_side: int, cache_bytes: int) -> ImageSet:
        """The same images with their shorter side resized, kept in memory up to `cache_bytes`.

        Resizing is the part of every transform that never changes, so what a transform makes of
        these images is what it makes of the originals, bit for bit.
        """
        cache = ImageCache(self.read, shorter_side, cache_bytes)
        return replace(self, read=cache.image)


@dataclass
class ImageCache:
    """Resized images, kept until they fill `cache_bytes`; the rest is decoded each time."""

    read: Callable[[int], Image.Image]
    shorter_side: int
    cache_bytes: int
    kept: dict[int, Image.Image] = field(default_factory=dict)
    used: int = 0

    def image(self, index: int) -> Image.Image:
        """The image at `index`, its shorter side resized with Pillow's bilinear filter."""
        image = self.kept.get(index)
        if image is None:
            image = tv.resize(self.read(index), [self.shorter_side], v2.InterpolationMode.BILINEAR)
            size = 4 * image.width * image.height  # Pillow pads RGB to four bytes a pixel
            if self.used + size <= self.cache_bytes:
                self.used += size
                self.kept[index] = image
        return image
