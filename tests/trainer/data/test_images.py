"""An image is taken, or refused, alike in training and in answering, whatever its file holds."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from prunion.runtime.base import Orientation, install_hint
from prunion.runtime.errors import DataError, InputError
from prunion.runtime.images import can_decode, image_kind, open_image
from prunion.runtime.images.image_check import ImageCheck, decode_image

RAMP = np.linspace(0, 65535, 1600, dtype=np.uint16).reshape(40, 40)


def stored(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def pgm(levels: np.ndarray, most: int) -> bytes:
    height, width = levels.shape
    return f"P5 {width} {height} {most}\n".encode() + levels.astype(">u2").tobytes()


def taken(data: bytes) -> np.ndarray:
    """The pixels that answering gets, which are those that training gets."""
    image = open_image(data)
    np.testing.assert_array_equal(np.asarray(decode_image(data, "it", "ignore")), image)
    ImageCheck("ignore").check([data], ["it"])
    assert image.mode == "RGB"
    return np.asarray(image)


def refused(data: bytes, says: str) -> None:
    """Answering, training, and the check before training say the same."""
    with pytest.raises(InputError, match=says):
        open_image(data)
    with pytest.raises(DataError, match=says):
        decode_image(data, "it", "exif")
    for deep_bytes in (0, 1 << 20):
        with pytest.raises(DataError, match=says):
            ImageCheck("exif", deep_bytes).check([data], ["it"])


@pytest.mark.parametrize(
    "data",
    [
        stored(Image.fromarray(RAMP), "PNG"),
        stored(Image.fromarray(RAMP), "TIFF"),
        pgm(RAMP, 65535),
    ],
    ids=["png", "tiff", "pgm"],
)
def test_sixteen_bits_are_scaled_by_the_range_of_the_type(data: bytes) -> None:
    np.testing.assert_array_equal(taken(data)[..., 1], RAMP >> 8)


def test_a_tiff_whose_white_is_zero_is_turned_round() -> None:
    data = bytearray(stored(Image.fromarray(RAMP), "TIFF"))
    place = data.index(b"\x06\x01\x03\x00\x01\x00\x00\x00")  # the tag 262, one short
    data[place + 8] = 0
    np.testing.assert_array_equal(taken(bytes(data))[..., 0], (65535 - RAMP) >> 8)


def test_a_pgm_of_fewer_levels_reaches_white() -> None:
    ramp = np.arange(1024, dtype=np.uint16).reshape(32, 32)
    pixels = taken(pgm(ramp, 1023))
    assert (pixels.min(), pixels.max()) == (0, 255)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_is_turned_only_where_that_is_asked(orientation: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 40, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "TIFF", tiffinfo={274: orientation})
    data = stream.getvalue()
    assert np.array_equal(decode_image(data, "x", "ignore"), pixels)
    turned = Image.open(io.BytesIO(data))
    turned.load()  # as Pillow turns it
    assert np.array_equal(decode_image(data, "x", "exif"), turned)
    for asked, told in (("exif", orientation > 1), ("ignore", False)):
        check = ImageCheck(asked)
        check.check([data], ["a"])
        assert check.met == ({"turned by their EXIF orientation": 1} if told else {})


@pytest.mark.parametrize(
    "data",
    [
        stored(Image.fromarray(RAMP / np.float32(65535)), "TIFF"),
        stored(Image.fromarray(RAMP.astype(np.int32)), "TIFF"),
        b"Pf\n40 40\n-1.0\n" + (RAMP / np.float32(65535)).astype("<f4").tobytes(),
    ],
    ids=["float tiff", "32-bit tiff", "pfm"],
)
def test_numbers_without_a_white_are_refused(data: bytes) -> None:
    refused(data, "more than 8 bits a channel without a largest one that is white")


def test_long_strips_are_refused() -> None:
    assert taken(stored(Image.new("RGB", (640, 10)), "PNG")).shape == (10, 640, 3)
    refused(stored(Image.new("RGB", (650, 10)), "PNG"), "650×10, one side over 64 times the other")
    with pytest.raises(InputError, match="over 64 times"):
        open_image(Image.new("RGB", (10, 650)))


def test_the_first_frame_answers_and_transparency_is_dropped() -> None:
    red, blue = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = stored(red, kind, save_all=True, append_images=[blue], **options)
        np.testing.assert_array_equal(taken(data), np.asarray(red))
    clear = red.copy()
    clear.putalpha(0)
    np.testing.assert_array_equal(taken(stored(clear, "PNG")), np.asarray(red))


# Orientation: what a camera stores for an upright picture held each way

UPRIGHT = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))
UNDONE: dict[int, Callable[[Image.Image], Image.Image]] = {
    1: lambda x: x,
    2: lambda x: x.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    3: lambda x: x.transpose(Image.Transpose.ROTATE_180),
    4: lambda x: x.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    5: lambda x: x.transpose(Image.Transpose.TRANSPOSE),
    6: lambda x: x.transpose(Image.Transpose.ROTATE_90),
    7: lambda x: x.transpose(Image.Transpose.TRANSVERSE),
    8: lambda x: x.transpose(Image.Transpose.ROTATE_270),
}


def held(orientation: int, kind: str = "PNG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return stored(UNDONE[orientation](UPRIGHT), kind, exif=exif)


@pytest.mark.parametrize("orientation", UNDONE)
def test_exif_orientation_is_applied_where_asked(orientation: int, tmp_path: Path) -> None:
    data = held(orientation)
    path = tmp_path / "x.png"
    path.write_bytes(data)
    for source in (data, path, str(path), Image.open(path)):
        assert open_image(source, "exif").tobytes() == UPRIGHT.tobytes()
    assert decode_image(path, "it", "exif").tobytes() == UPRIGHT.tobytes()
    assert open_image(data, "ignore").tobytes() == UNDONE[orientation](UPRIGHT).tobytes()
    once = open_image(data, "exif")
    assert open_image(once, "exif").tobytes() == UPRIGHT.tobytes(), "turned twice"


def test_damaged_exif_turns_nothing() -> None:
    for exif in (b"Exif\0\0no tiff", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"):
        data = stored(UPRIGHT, "JPEG", exif=exif)
        assert open_image(data, "exif").tobytes() == open_image(data).tobytes()


def test_a_camera_s_jpeg_is_turned() -> None:
    assert open_image(held(6, "JPEG"), "exif").size == (30, 20)
    assert open_image(held(6, "WEBP"), "exif").size == (30, 20)


def test_a_damaged_image_object_is_a_user_s_error() -> None:
    data = stored(UPRIGHT, "PNG")
    with pytest.raises(InputError, match="the image is no readable image"):
        open_image(Image.open(io.BytesIO(data[: len(data) // 2])))


# Formats that are not in every Pillow

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)


@pytest.mark.skipif(can_decode("HEIF"), reason="pillow-heif is installed")
def test_heic_names_the_package_that_reads_it(tmp_path: Path) -> None:
    refused(HEIC, "HEIF, which takes the package pillow-heif to read")
    with pytest.raises(InputError, match=re.escape(install_hint("heif"))):
        open_image(HEIC)
    (tmp_path / "x").write_bytes(HEIC)
    assert image_kind(tmp_path / "x") == "HEIF"


@pytest.mark.skipif(not can_decode("HEIF"), reason="needs pillow-heif")
def test_heic_is_read_with_pillow_heif() -> None:
    import pillow_heif  # registered by now

    stream = io.BytesIO()
    pillow_heif.from_pillow(UPRIGHT).save(stream)
    assert open_image(stream.getvalue()).size == UPRIGHT.size


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif_is_read_where_pillow_does() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = stored(UNDONE[6](UPRIGHT), "AVIF", quality=100, exif=exif)
    difference = np.asarray(open_image(data, "exif"), int) - np.asarray(UPRIGHT)
    assert np.abs(difference).mean() < 60


def test_the_kind_of_a_file_is_its_content(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    for data, kind in (
        (stored(UPRIGHT, "JPEG"), "JPEG"),
        (stored(UPRIGHT, "PPM"), "PPM"),
        (b"BMW and P5 are words", None),
        (b"", None),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", None),
    ):
        path.write_bytes(data)
        assert image_kind(path) == kind
    assert image_kind(tmp_path / "none") is None


def test_a_jpeg_smaller_than_its_own_blocks_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    Image.new("RGB", (6, 5)).save(path)
    ImageCheck("exif").check([path], ["x"])


def test_a_jpeg_that_was_cut_off_is_told_before_training() -> None:
    """`verify` does not notice, and test images are first read to the end after the last epoch."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    whole = stored(Image.fromarray(noise), "JPEG")
    for deep_bytes in (0, 1 << 20):
        for data in (whole, whole + bytes(64)):
            ImageCheck("exif", deep_bytes).check([data], ["it"])
        with pytest.raises(DataError, match=r"it cannot be read .*remove it or replace it"):
            ImageCheck("exif", deep_bytes).check([whole[:-200]], ["it"])


@pytest.mark.parametrize("asked", ["exif", "ignore"])
@pytest.mark.parametrize("mode", ["L", "P", "I;16", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_tiff_is_the_same_from_its_file_and_from_its_bytes(
    tmp_path: Path, orientation: int, mode: str, asked: Orientation
) -> None:
    """Pillow maps a file's raw pixels into memory by the size that it has after it is turned."""
    levels = (np.arange(40 * 28) % 251).astype(np.uint8).reshape(40, 28)
    deep = Image.fromarray(levels.astype(np.uint16) * 257)
    image = deep if mode == "I;16" else Image.fromarray(levels).convert(mode)
    path = tmp_path / "a.tif"
    image.save(path, tiffinfo={274: orientation})
    right = open_image(path.read_bytes(), asked)
    np.testing.assert_array_equal(open_image(path, asked), right)
    with Image.open(path) as opened:  # and not yet loaded
        np.testing.assert_array_equal(open_image(opened, asked), right)
        assert opened.filename == str(path)
