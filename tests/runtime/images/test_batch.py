"""Preprocessing equals torchvision's, and odd input is refused."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from prunion.runtime.bundle import ImageInput
from prunion.runtime.errors import InputError
from prunion.runtime.images import (
    check_finite,
    headers,
    open_image,
    to_array,
    to_batch,
    to_pixels,
)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def spec(height: int = 12, width: int = 10, shorter: int = 14) -> ImageInput:
    return ImageInput(height, width, MEAN, STD, shorter)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("size", "crop", "shorter"),
    [
        ((64, 64), (64, 64), 64),
        ((37, 91), (32, 32), 33),
        ((91, 37), (32, 32), 33),
        ((500, 333), (224, 224), 256),
        ((5, 7), (16, 16), 16),
        ((101, 100), (31, 45), 40),
        ((33, 20), (48, 47), 21),  # the crop is larger than the resized image: padded
        ((20, 33), (47, 12), 21),
    ],
)
def test_equals_torchvision(size: tuple[int, int], crop: tuple[int, int], shorter: int) -> None:
    v2: Any = pytest.importorskip("torchvision.transforms.v2", reason="needs torchvision")
    import torch

    transform = v2.Compose(
        [
            v2.Resize(shorter),
            v2.CenterCrop(crop),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    image = picture(*size)
    ours = to_array(image, spec(*crop, shorter))
    assert ours.shape == (3, *crop)
    np.testing.assert_allclose(ours, transform(image).numpy(), rtol=0, atol=1e-6)


def test_every_form_of_one_image_gives_the_same(tmp_path: Path) -> None:
    image, s = picture(40, 30), spec()
    path = tmp_path / "x.png"
    image.save(path)
    expected = to_array(image, s)
    forms = [path, str(path), path.read_bytes(), image, np.asarray(image)]
    for form in [*forms, np.asarray(image)[None], [image], expected[None], [expected]]:
        np.testing.assert_array_equal(to_batch(form, s), expected[None])
    np.testing.assert_array_equal(to_batch(forms, s), np.stack([expected] * len(forms)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_every_value_is_looked_at(bad: float) -> None:
    large = np.full((2, 3, 60, 60), 3e38, np.float32)
    with np.errstate(all="raise"):
        check_finite(large)
        for place in (0, 1, 777, 16384, large.size - 1):
            image = np.random.default_rng(0).standard_normal(large.shape, dtype=np.float32)
            image.flat[place] = bad
            with pytest.raises(InputError, match="NaN or infinity"):
                check_finite(image)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_other_modes_become_rgb(mode: str) -> None:
    image = picture(20, 20).convert(mode)
    np.testing.assert_array_equal(to_array(image, spec()), to_array(image.convert("RGB"), spec()))


def test_exif_orientation_is_not_applied() -> None:
    image = picture(30, 20)
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    image.save(stream, "PNG", exif=exif)
    assert open_image(stream.getvalue()).size == (30, 20)


def png_header(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims any size."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"")
    chunks = [
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (head, data)
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [8_100, 10_000, 60_000])
def test_bomb_is_refused_before_it_is_decoded(side: int) -> None:
    with pytest.raises(InputError, match="scale it down"):
        open_image(png_header(side, side))


def test_thin_strip_does_not_blow_up() -> None:
    with pytest.raises(InputError, match=r"1×100000 image, resized.*scale it down"):
        to_array(Image.new("RGB", (1, 100_000)), spec(224, 224, 1024))


def test_damaged_files_are_refused() -> None:
    good = encoded(picture(60, 60), "JPEG")
    for bad in (b"", b"hello", good[: len(good) // 2], b"%!PS-Adobe-3.0 EPSF-3.0\n"):
        with pytest.raises(InputError, match="no readable image"):
            open_image(bad)
    with pytest.raises(InputError, match=r"nowhere\.png does not exist"):
        open_image("nowhere.png")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "no images given"),
        (np.zeros((0, 3, 12, 10), np.float32), "batch is empty"),
        (np.zeros((1, 3, 12, 11), np.float32), r"float32 \[1, 3, 12, 11\]"),
        (np.zeros((1, 3, 12, 10), np.float64), "float64"),
        (np.full((1, 3, 12, 10), np.nan, np.float32), "NaN"),
        (np.full((1, 3, 12, 10), np.inf, np.float32), "infinity"),
        (np.zeros((2, 3, 12, 10), np.uint8), r"raw images are uint8 \[H, W, 3\]"),
        (np.zeros((12, 10), np.uint8), r"raw images are uint8 \[H, W, 3\]"),
        (np.zeros((0, 10, 3), np.uint8), r"raw images are uint8 \[H, W, 3\]"),
        (np.array(3), "no images given"),
        ([object()], "cannot read a object"),
        ([None], "cannot read a NoneType"),
    ],
)
def test_odd_arrays_are_refused(images: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        to_batch(images, spec())


def test_the_limit_is_pixels_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headers, "MAX_PIXELS", 400)
    open_image(encoded(picture(20, 20)))
    with pytest.raises(InputError, match="21×20, outside"):
        open_image(encoded(picture(21, 20)))


def test_bytes_of_any_kind_are_an_image() -> None:
    data = encoded(picture(30, 40))
    expected = to_batch(data, spec())
    for same in (bytearray(data), memoryview(data), [bytearray(data)], (x for x in [data])):
        assert np.array_equal(to_batch(same, spec()), expected)


@pytest.mark.parametrize(
    ("images", "told"),
    [
        (io.BytesIO(b"GIF\n\n"), "cannot read a BytesIO as an image: .* give FILE.read"),
        ([io.BytesIO()], "cannot read a BytesIO as an image: .* give FILE.read"),
        ({"a.png": 1}, "cannot read a dict as an image: pass a path, .* or a list of these"),
        ({"a.png"}, "cannot read a set as an image"),  # its answers would be in no order
        (5, "cannot read a int as an image"),
        (np.zeros((4, 5), np.uint8), "got uint8 .4, 5.: raw images are uint8 .H, W, 3. RGB"),
        (np.zeros(5), "got float64 .5.: raw images"),
    ],
)
def test_what_is_no_image_is_told_with_what_is(images: Any, told: str) -> None:
    for read in (to_batch, to_pixels):
        with pytest.raises(InputError, match=told):
            read(images, spec())
