"""TIFFs whose raw pixels Pillow takes for another layout, without a word: they are refused."""

from __future__ import annotations

import io
import re
import struct

import numpy as np
import pytest
from PIL import Image

from prunion.runtime.errors import DataError, InputError
from prunion.runtime.images import open_image
from prunion.runtime.images.headers import check_header
from prunion.runtime.images.image_check import ImageCheck, decode_image

SIDE, TILE = 32, 16
LAYOUT = "a TIFF stored plane by plane without compression"
SIGNED = "of signed numbers without one that is white"
Tags = dict[int, list[int]]


def tiff(order: str, tags: Tags, parts: list[bytes], behind: bytes = b"") -> bytes:
    """The bytes of a TIFF of 32×32 pixels: in tiles if the tags say how large, else in strips."""
    places, sizes = (324, 325) if 322 in tags else (273, 279)
    tags = {256: [SIDE], 257: [SIDE], 259: [1], **tags, sizes: [len(part) for part in parts]}
    begin = 8 + 2 + 12 * (len(tags) + 1) + 4
    end = begin + 4 * sum(len(x) for x in tags.values() if len(x) > 1) + 4 * len(parts)
    tags[places] = [end + sum(map(len, parts[:n])) for n in range(len(parts))]
    far, entries = b"", b""
    for tag in sorted(tags):
        values = tags[tag]
        kind, letter = (4, "I") if tag in (places, sizes) else (3, "H")
        packed = struct.pack(f"{order}{len(values)}{letter}", *values)
        if len(packed) > 4:
            packed, far = struct.pack(f"{order}I", begin + len(far)), far + packed
        entries += struct.pack(f"{order}HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}IH", 8, len(tags))
    return (head + entries + bytes(4) + far).ljust(end, b"\0") + b"".join(parts) + behind


def planes(pixels: np.ndarray, order: str, tiles: bool, **more: list[int]) -> bytes:
    """`[C, H, W]` plane by plane, of 8 or 16 bits."""
    bits, channels = pixels.dtype.itemsize * 8, len(pixels)
    tags = {258: [bits] * channels, 277: [channels], 284: [2], 262: [2 if channels == 3 else 1]}
    tags |= {int(tag[1:]): values for tag, values in more.items()}
    tags |= {322: [TILE], 323: [TILE]} if tiles else {278: [8]}
    stored = pixels.astype(f"{order}u{bits // 8}")
    high, wide = (TILE, TILE) if tiles else (8, SIDE)
    return tiff(
        order,
        tags,
        [
            plane[y : y + high, x : x + wide].tobytes()
            for plane in stored
            for y in range(0, SIDE, high)
            for x in range(0, SIDE, wide)
        ],
    )


def refused(data: bytes, says: str) -> None:
    """Answering, training, and the check before training say the same."""
    with pytest.raises(InputError, match=f"the image is {re.escape(says)}.*: (store|convert) it"):
        open_image(data)
    with pytest.raises(DataError, match=re.escape(says)):
        decode_image(data, "it", "exif")
    for deep_bytes in (0, 1 << 20):
        with pytest.raises(DataError, match=re.escape(says)):
            ImageCheck("exif", deep_bytes).check([data], ["it"])


def noise(channels: int, dtype: type) -> np.ndarray:
    most = np.iinfo(dtype).max + 1
    return np.random.default_rng(0).integers(0, most, (channels, SIDE, SIDE), dtype)


@pytest.mark.parametrize("tiles", [False, True])
@pytest.mark.parametrize("order", "<>")
def test_planes_are_read_right_or_refused(order: str, tiles: bool) -> None:
    colours, shades = noise(3, np.uint8), noise(1, np.uint8)
    taken = np.asarray(open_image(planes(colours, order, tiles)))
    np.testing.assert_array_equal(taken, colours.transpose(1, 2, 0))
    grey = np.asarray(open_image(planes(shades, order, tiles)))
    np.testing.assert_array_equal(grey[..., 1], shades[0])
    deep, lab, from_below, white = (
        planes(noise(3, np.uint16), order, tiles),
        planes(colours, order, tiles, _262=[8]),
        planes(colours, order, tiles, _266=[2]),
        planes(shades, order, tiles, _262=[0]),
    )
    for data in (deep, lab, from_below, white):
        refused(data, LAYOUT)


def test_sixteen_bits_plane_by_plane_are_read_where_they_are_compressed() -> None:
    tifffile = pytest.importorskip("tifffile")
    deep, stream = noise(3, np.uint16), io.BytesIO()
    tifffile.imwrite(stream, deep, photometric="rgb", planarconfig="separate", compression="zlib")
    taken = np.asarray(open_image(stream.getvalue()), int)
    assert np.abs(taken - (deep >> 8).transpose(1, 2, 0)).max() <= 1


@pytest.mark.parametrize("order", "<>")
def test_signed_numbers_have_no_white(order: str) -> None:
    refused(planes(noise(1, np.uint8), order, False, _284=[1], _339=[2]), SIGNED)
    assert open_image(planes(noise(1, np.uint8), order, False, _339=[1])).size == (SIDE, SIDE)


def test_colours_coarser_than_shades_are_refused_without_compression() -> None:
    parts = [bytes(SIDE * 8 * 3 // 2)] * 4
    tags: Tags = {258: [8] * 3, 277: [3], 262: [6], 278: [8]}
    for coarse in ({}, {530: [2, 2]}, {530: [2, 1]}):
        refused(tiff("<", tags | coarse, parts, bytes(SIDE * SIDE * 3)), "a TIFF of YCbCr without")
    # What a writer forgot to say, its bytes tell.
    for fine in ([bytes(SIDE * 8 * 3)] * 4, {530: [1, 1]}):
        whole = tiff("<", tags | fine, parts) if isinstance(fine, dict) else tiff("<", tags, fine)
        with Image.open(io.BytesIO(whole)) as image:
            check_header(image)


@pytest.mark.parametrize(
    ("order", "tags"),
    [
        ("<", {258: [16], 339: [3]}),
        ("<", {258: [64], 339: [3]}),
        ("<", {258: [16, 16], 277: [2], 338: [2]}),
        (">", {258: [16], 262: [0]}),
        (">", {258: [12]}),
    ],
    ids=["half", "double", "transparency", "white is zero", "twelve"],
)
def test_a_tiff_of_another_kind_is_told_as_one(order: str, tags: Tags) -> None:
    """Not as no TIFF, for which another TIFF was the advice."""
    data = tiff(order, {262: [1], 277: [1], 278: [SIDE], **tags}, [bytes(SIDE * SIDE * 8)])
    says = "a TIFF that is damaged, or of a kind that cannot be read"
    with pytest.raises(InputError, match=f"the image is {says}: replace it, or convert it to 8"):
        open_image(data)
    with pytest.raises(DataError, match=rf"x cannot be read \({says}\): replace it, or convert it"):
        decode_image(data, "x", "exif")


def test_beginnings_of_images_are_told_from_what_is_none() -> None:
    for data, kind in (
        (b"\xff\xd8\xff\xe0", "a JPEG"),
        (b"\x89PNG\r\n\x1a\n", "a PNG"),
        (b"GIF89a", "a GIF"),
        (b"MM\0+\0\x08\0\0", "a TIFF"),
        (b"BMW and P5 are words", "no readable image"),
    ):
        with pytest.raises(InputError, match=f"the image is {kind}"):
            open_image(data)
