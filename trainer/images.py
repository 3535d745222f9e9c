"""Decode one stored image to RGB, or say which file is at fault."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from prunion.runtime.errors import DataError

__all__ = ["MAX_PIXELS", "ImageBytes", "check_image", "decode_image", "to_rgb"]

MAX_PIXELS = 100_000_000
MAX_ASPECT = 64  # beyond it, resizing the shorter side would make a gigantic strip

# A path, or the encoded bytes themselves.
ImageBytes = Path | bytes


def decode_image(data: ImageBytes, what: str) -> Image.Image:
    """The image in `data` as RGB, as stored (no EXIF rotation); `what` names it in messages.

    Raises DataError if it cannot be decoded, is larger than 100 million pixels, has a side 64
    times the other, or has more than 8 bits a channel.
    """
    return _guarded(data, what, to_rgb)


def check_image(data: ImageBytes, what: str, *, deep: bool) -> None:
    """Raise DataError unless the image's header reads; if `deep`, also its pixels."""
    if not isinstance(data, bytes) or not deep:
        _guarded(data, what, lambda image: image.verify())
    if deep:
        _guarded(data, what, _load_small)


def to_rgb(image: Image.Image) -> Image.Image:
    """An opened 8-bit image of any mode as RGB; alpha is dropped. Raises ValueError if deeper."""
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"mode {image.mode}: more than 8 bits a channel")
    if "transparency" in image.info and image.mode == "P":
        image = image.convert("RGBA")
    return image.convert("RGB")


def _load_small(image: Image.Image) -> None:
    to_rgb_mode = image.mode
    if to_rgb_mode.startswith(("I", "F")):
        raise ValueError(f"mode {to_rgb_mode}: more than 8 bits a channel")
    # A JPEG's whole stream is read at an eighth of the size: a cheap proof that it is complete.
    image.draft("RGB", (image.width // 8, image.height // 8))
    image.load()


def _guarded(data: ImageBytes, what: str, use: Callable[[Image.Image], object]) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on size and EXIF; size is checked
            with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data) as image:
                _check_size(image.width, image.height)
                result = use(image)
                return result if isinstance(result, Image.Image) else image
    except UnidentifiedImageError:
        reason = "it is no image that Pillow knows"
    except Image.DecompressionBombError:
        reason = f"it has more than {MAX_PIXELS:,} pixels"
    # Broken files make Pillow's decoders fail in many ways, struct.error among them.
    except Exception as exc:
        reason = str(exc).split("\n")[0] or type(exc).__name__
    raise DataError(f"{what} cannot be read ({reason}): remove it or replace it")


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width} x {height} is more than {MAX_PIXELS:,} pixels")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ValueError(f"{width} x {height}: one side is over {MAX_ASPECT} times the other")
