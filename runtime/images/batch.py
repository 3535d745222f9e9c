"""Images in, `[N, 3, H, W]` float32 out: the resize, crop and normalisation training used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from math import isfinite, isnan
from pathlib import Path

import numpy as np
from PIL import Image

from prunion.runtime.bundle import ImageInput
from prunion.runtime.errors import InputError
from prunion.runtime.images.decode import open_image
from prunion.runtime.images.headers import MAX_PIXELS

__all__ = [
    "ImageLike",
    "as_list",
    "check_finite",
    "check_normalised",
    "check_pixels",
    "check_shape",
    "farthest_from_zero",
    "to_array",
    "to_batch",
    "to_pixels",
]

ImageLike = str | Path | bytes | bytearray | memoryview | Image.Image | np.ndarray

FLOAT32 = np.dtype(np.float32)
PIECE = 1 << 17  # numbers that a core's cache holds
LARGEST, SMALLEST = np.maximum.reduce, np.minimum.reduce


def to_array(image: Image.Image, spec: ImageInput) -> np.ndarray:
    """One image → `[3, H, W]` float32, normalised."""
    pixels = _cropped(image, spec).astype(np.float32) / np.float32(255)
    mean, std = np.array([spec.mean, spec.std], dtype=np.float32)
    return np.ascontiguousarray(((pixels - mean) / std).transpose(2, 0, 1))


def to_batch(images: Iterable[ImageLike] | ImageLike, spec: ImageInput) -> np.ndarray:
    """Any accepted images → `[N, 3, H, W]` float32.

    Accepts a path, bytes, a PIL image, `[H, W, 3]` uint8, a list of these, `[N, H, W, 3]` uint8,
    and `[N, 3, H, W]` float32 that is normalised already (checked to be finite).
    Raises InputError with the shape and type found.
    """
    if isinstance(images, np.ndarray) and images.dtype == np.float32:
        return check_normalised(images, spec)
    rows = [_one(image, spec) for image in as_list(images)]
    if not rows:
        raise InputError("no images given: pass at least one")
    return np.stack(rows)


def to_pixels(images: Iterable[ImageLike] | ImageLike, spec: ImageInput) -> np.ndarray:
    """Any accepted images → `[N, H, W, 3]` uint8, resized and cropped, for a uint8 graph.

    Accepts what `to_batch` does but for float32: its pixels are not known any more. Raises
    InputError.
    """
    rows = [_cropped(_picture(image, spec), spec) for image in as_list(images)]
    if not rows:
        raise InputError("no images given: pass at least one")
    return np.stack(rows)


def as_list(images: Iterable[ImageLike] | ImageLike) -> list[ImageLike]:
    """The single images of `images`, whatever form they came in.

    Raises InputError for what is no image and holds none in an order.
    """
    if isinstance(images, (bytearray, memoryview)):
        return [bytes(images)]
    if isinstance(images, (str, Path, bytes, Image.Image)):
        return [images]
    if isinstance(images, np.ndarray):  # of four dimensions a batch; of names a list
        several = images.ndim == 4 or (images.ndim == 1 and images.dtype.kind in "OU")
        return list(images) if several else [images] if images.ndim else []
    ordered = isinstance(images, Iterable) and not isinstance(images, (Mapping, Set))
    if not ordered or hasattr(images, "read"):  # a file would be read by its lines
        raise _no_image(images)
    return [bytes(x) if isinstance(x, (bytearray, memoryview)) else x for x in images]


def check_normalised(array: np.ndarray, spec: ImageInput) -> np.ndarray:
    """`array` itself if it is `[N, 3, H, W]` float32 and finite. Raises InputError otherwise."""
    array = check_shape(array, spec)
    check_finite(array)
    return array


def check_shape(array: np.ndarray, spec: ImageInput) -> np.ndarray:
    """`array` itself if it is `[N, 3, H, W]` float32. Raises InputError otherwise."""
    shape = (3, spec.height, spec.width)
    if array.dtype != FLOAT32 or array.ndim != 4 or array.shape[1:] != shape:
        raise InputError(
            f"got {array.dtype} {list(array.shape)}: a normalised batch is float32 "
            f"[N, 3, {spec.height}, {spec.width}], raw images are uint8 [N, H, W, 3]"
        )
    if not len(array):
        raise InputError("the batch is empty: pass at least one image")
    return np.ascontiguousarray(array)


def check_finite(array: np.ndarray) -> None:
    """Raise InputError if float32 or float16 `array`, contiguous, holds NaN or infinity."""
    if not isfinite(farthest_from_zero(array)):
        raise InputError("the image array holds NaN or infinity: check how it was normalised")


def farthest_from_zero(array: np.ndarray) -> float:
    """The largest magnitude in float32 or float16 `array`, contiguous; NaN where that is in it."""
    flat = array.reshape(-1)
    if flat.dtype == np.float16:  # numpy compares one half at a time, and their bits many
        bits = np.bitwise_and(flat.view(np.int16), 0x7FFF)  # in the order of the magnitudes
        return float(bits.max(initial=0).view(np.float16))
    found = 0.0
    for start in range(0, len(flat), PIECE):  # or all would come from memory twice
        part = flat[start : start + PIECE]
        most, least = float(LARGEST(part)), float(SMALLEST(part))
        if isnan(most):
            return most
        found = max(found, most, -least)
    return found


def check_pixels(array: np.ndarray, spec: ImageInput) -> np.ndarray:
    """`array` itself if it is `[N, H, W, 3]` uint8 of the graph's size. Raises InputError."""
    if (
        array.dtype != np.uint8
        or array.ndim != 4
        or array.shape[1:] != (spec.height, spec.width, 3)
    ):
        raise InputError(
            f"got {array.dtype} {list(array.shape)}: this graph takes raw images, uint8 "
            f"[N, {spec.height}, {spec.width}, 3] RGB; use another precision for normalised ones"
        )
    if not len(array):
        raise InputError("the batch is empty: pass at least one image")
    return np.ascontiguousarray(array)


def _one(image: ImageLike, spec: ImageInput) -> np.ndarray:
    if isinstance(image, np.ndarray) and image.dtype == np.float32 and image.ndim == 3:
        checked: np.ndarray = check_normalised(image[None], spec)[0]
        return checked
    return to_array(_picture(image, spec), spec)


def _picture(image: ImageLike, spec: ImageInput) -> Image.Image:
    if isinstance(image, np.ndarray):
        image = _from_pixels(image)
    if isinstance(image, (str, Path, bytes, Image.Image)):
        return open_image(image, spec.orientation)
    raise _no_image(image)


def _no_image(found: object) -> InputError:
    fix = ", or its bytes: give FILE.read()" if hasattr(found, "read") else ""
    return InputError(
        f"cannot read a {type(found).__name__} as an image: pass a path, bytes, a PIL image or "
        f"a uint8 array [H, W, 3], or a list of these{fix}"
    )


def _from_pixels(pixels: np.ndarray) -> Image.Image:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise InputError(
            f"got {pixels.dtype} {list(pixels.shape)}: raw images are uint8 [H, W, 3] RGB"
        )
    return Image.fromarray(pixels)


def _cropped(image: Image.Image, spec: ImageInput) -> np.ndarray:
    """`[H, W, 3]` uint8."""
    image = image if image.mode == "RGB" else image.convert("RGB")
    return np.asarray(_centre_crop(_resize(image, spec.shorter_side), spec.height, spec.width))


def _resize(image: Image.Image, shorter: int) -> Image.Image:
    width, height = image.size
    longer = int(shorter * max(width, height) / min(width, height))
    # A 1-pixel-wide strip passes the pixel limit and would grow by its aspect ratio.
    if not 0 < shorter * longer <= MAX_PIXELS:
        raise InputError(
            f"the {width}×{height} image, resized for this model, is {shorter}×{longer}, outside "
            f"1..{MAX_PIXELS} pixels: scale it down"
        )
    size = (shorter, longer) if width <= height else (longer, shorter)
    return image if size == image.size else image.resize(size, Image.Resampling.BILINEAR)


def _centre_crop(image: Image.Image, height: int, width: int) -> Image.Image:
    if width > image.width or height > image.height:
        image = _pad(image, max(width, image.width), max(height, image.height))
    left = round((image.width - width) / 2.0)
    top = round((image.height - height) / 2.0)
    return image.crop((left, top, left + width, top + height))


def _pad(image: Image.Image, width: int, height: int) -> Image.Image:
    canvas = Image.new("RGB", (width, height))
    canvas.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
    return canvas
