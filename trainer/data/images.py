"""Stored images to RGB, one at a time; those that cannot be read are named before training."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from PIL import Image, UnidentifiedImageError

from prunion.runtime.errors import DataError
from prunion.runtime.images import FORMATS, MAX_PIXELS

__all__ = ["ImageCheck", "check_image", "decode_image", "to_rgb"]

MAX_ASPECT = 64  # beyond it, resizing the shorter side would make a gigantic strip
AT_ONCE = 1024

Result = TypeVar("Result")


def decode_image(data: Path | bytes, what: str) -> Image.Image:
    """The image in a file or its bytes as RGB, as stored (no EXIF rotation).

    Raises DataError, naming it as `what`, if it cannot be decoded, has more than 64 million
    pixels, a side over 64 times the other, or more than 8 bits a channel.
    """
    return _opened(data, what, to_rgb)


def check_image(data: Path | bytes, what: str, *, deep: bool) -> None:
    """Raise DataError unless the image's header reads; if `deep`, also its pixels."""
    _opened(data, what, _load_small if deep else Image.Image.verify)


def to_rgb(image: Image.Image) -> Image.Image:
    """An opened 8-bit image of any mode as RGB; alpha is dropped. Raises ValueError if deeper."""
    _check_depth(image)
    return image.convert("RGB")


@dataclass
class ImageCheck:
    """Checks a data set's images, part by part: the first `deep_bytes` of them to the last pixel.

    Of the images after those only headers are read, so that opening a large data set stays quick.
    """

    deep_bytes: int = 64 << 20

    def check(self, images: Sequence[Path | bytes], names: Sequence[str]) -> None:
        """Raise one DataError that names the first image of `images` that cannot be read."""
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(images), AT_ONCE):
                some = images[start : start + AT_ONCE]
                deep = [self._is_deep(image) for image in some]
                found = pool.map(_error, some, names[start : start + AT_ONCE], deep)
                bad = [error for error in found if error is not None]
                if bad:
                    more = f" (and {len(bad) - 1} more like it)" if len(bad) > 1 else ""
                    raise DataError(f"{bad[0]}{more}")

    def _is_deep(self, image: Path | bytes) -> bool:
        with suppress(OSError):  # opening the file will say what is wrong
            self.deep_bytes -= len(image) if isinstance(image, bytes) else image.stat().st_size
        return self.deep_bytes > 0


def _error(image: Path | bytes, name: str, deep: bool) -> DataError | None:
    try:
        check_image(image, name, deep=deep)
    except DataError as exc:
        return exc
    return None


def _load_small(image: Image.Image) -> None:
    _check_depth(image)
    # A JPEG's whole stream is read at an eighth of the size: a cheap proof that it is complete.
    image.draft("RGB", (image.width // 8, image.height // 8))
    image.load()


def _opened(data: Path | bytes, what: str, use: Callable[[Image.Image], Result]) -> Result:
    try:
        stream = io.BytesIO(data) if isinstance(data, bytes) else data
        with Image.open(stream, formats=FORMATS) as image:
            _check_size(image.width, image.height)
            return use(image)
    except MemoryError:
        raise
    except UnidentifiedImageError:
        reason = f"not an image of {', '.join(FORMATS)}"
    # Broken files make Pillow's decoders fail in many ways, struct.error among them.
    except Exception as exc:
        reason = str(exc).split("\n")[0] or type(exc).__name__
    raise DataError(f"{what} cannot be read ({reason}): remove it or replace it")


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width} x {height} is more than {MAX_PIXELS:,} pixels")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ValueError(f"{width} x {height}: one side is over {MAX_ASPECT} times the other")


def _check_depth(image: Image.Image) -> None:
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"mode {image.mode}: more than 8 bits a channel")
