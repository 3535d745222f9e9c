"""Whether a picture that was decoded held all its pixels: Pillow fills in the rest in silence."""

from __future__ import annotations

import io
import random
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from operator import mul
from pathlib import Path
from typing import IO, Any

from PIL import Image, JpegImagePlugin

from prunion.runtime.images.headers import (
    COMPRESSION,
    END,
    FRAMES,
    PNG,
    SCAN,
    STRIP_BYTES,
    TILE_BYTES,
    ImageFault,
    segments,
)

__all__ = ["check_whole"]

STEP = 1 << 16  # bytes that are read, or unpacked, at a time
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a PNG's types of colour
# First column and row, and how far the next are, of the passes of an interlaced PNG.
PASSES = (
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)
LUMA = (0.299, 0.587, 0.114)
GREY, NEAR = 128, 2
JPEG_END = bytes([0xFF, END])
STRIP_PLACES, TILE_PLACES, TABLES, AS_JPEG = 273, 324, 347, 7  # tags of TIFF, a COMPRESSION
# Frames whose encoders leave out what zeros behind them would be, so that all bytes go on.
ARITHMETIC = {*range(0xC9, 0xD0)} - {0xCC}
MOST = 1 << 28  # bytes of a JPEG that are held in memory
# Goes on where data stops, within a piece between restarts or behind one; of no byte that is FF.
NOISE = random.Random(0)
MORE = b"".join(
    bytes(NOISE.randrange(255) for _ in range(64)) + bytes([0xFF, 0xD0 + piece % 8])
    for piece in range(16)
)


def check_whole(image: Image.Image, file: IO[bytes] | None) -> None:
    """Raise ImageFault if a PNG, JPEG or TIFF of JPEGs, loaded from `file`, lacks pixels.

    What Pillow leaves out looks as nothing else does but a few pictures: black last rows in a PNG,
    grey in the last corner of a JPEG, or colours that end so where they stand behind the shades.
    Only of these, and of such a TIFF, is the file read once more. Of a progressive JPEG
    `check_header` has looked for scans that are missing; a cut inside its last scan is not found.
    Nor is one in an arithmetic-coded JPEG, in a TIFF's other strips, or in what is over MOST.
    """
    if image.format == "PNG" and _may_lack_rows(image):
        with _again(image, file) as whole:
            short = whole is not None and _holds_fewer(whole)
        if short:
            raise ImageFault("a PNG that ends before its last row", "replace it")
    if image.format in ("JPEG", "MPO") and "progressive" not in image.info:
        grey = _ends_grey(image)
        with _again(image, file) as whole:
            short = whole is not None and (grey or _comes_apart(whole)) and _goes_on(whole)
        if short:
            raise ImageFault("a JPEG that was cut off before its last block", "replace it")
    tags = getattr(image, "tag_v2", {})
    if image.format == "TIFF" and tags.get(COMPRESSION) == AS_JPEG:
        short = False
        # What libtiff has read may be of another kind than Pillow takes alone.
        with _again(image, file) as whole, suppress(Exception):
            short = whole is not None and _goes_on(_last_piece(whole, tags))
        if short:
            raise ImageFault("a TIFF whose last strip or tile was cut off", "replace it")


@contextmanager
def _again(image: Image.Image, file: IO[bytes] | None) -> Iterator[IO[bytes] | None]:
    """The file that an image came from; None where it is closed and has no name.

    Whoever opened it goes on where it was: Pillow reads further frames from there.
    """
    name = getattr(image, "filename", None) or getattr(file, "name", None)
    if file is not None and not file.closed:
        place = file.tell()
        try:
            yield file
        finally:
            file.seek(place)
    elif isinstance(name, (str, Path)) and name:
        with open(name, "rb") as again:
            yield again
    else:
        yield None


def _may_lack_rows(image: Image.Image) -> bool:
    """Rows that did not come are left as they were made, zero; of one pass they stand anywhere."""
    if image.info.get("interlace"):
        return True
    if any(_corner(image)):
        return False
    return not any(image.crop((0, image.height - 1, image.width, image.height)).tobytes())


def _corner(image: Image.Image) -> tuple[float, ...]:
    """The last pixel's channels."""
    found = image.getpixel((image.width - 1, image.height - 1))
    return found if isinstance(found, tuple) else (found or 0,)


def _holds_fewer(file: IO[bytes]) -> bool:
    """Whether a PNG's data unpack to fewer bytes than its header needs."""
    file.seek(0)
    if file.read(len(PNG)) != PNG:  # it stands inside another file
        return False
    left, unpack = 0, zlib.decompressobj()
    while len(head := file.read(8)) == 8:
        size, kind = int.from_bytes(head[:4], "big"), head[4:]
        if kind == b"IHDR":
            left = _bytes_of(file.read(13))
            size -= 13
        while kind == b"IDAT" and left > 0 and (packed := file.read(min(size, STEP))):
            size -= len(packed)
            while packed and left > 0:
                left -= len(unpack.decompress(packed, STEP))
                packed = unpack.unconsumed_tail
        if kind == b"IEND" or left <= 0:
            break
        file.seek(size + 4, io.SEEK_CUR)  # and its checksum
    return left > 0


def _bytes_of(header: bytes) -> int:
    """Bytes of a PNG's rows with their filters, as its IHDR says."""
    width, height = (int.from_bytes(header[x : x + 4], "big") for x in (0, 4))
    bits = header[8] * CHANNELS.get(header[9], 1)
    rows = 0
    for x, y, across, down in PASSES if header[12] else ((0, 0, 1, 1),):
        columns = max(0, -(-(width - x) // across))
        rows += max(0, -(-(height - y) // down)) * (1 + (columns * bits + 7) // 8) * (columns > 0)
    return rows


def _ends_grey(image: Image.Image) -> bool:
    """Blocks that did not come are of the middle of each channel; of four channels any may be."""
    last = _corner(image)
    shade = last[0] if len(last) == 1 else sum(map(mul, LUMA, last))
    return len(last) > 3 or abs(shade - GREY) <= NEAR


def _comes_apart(file: IO[bytes]) -> bool:
    """Whether a JPEG's components stand one behind the other: then only a colour may end grey."""
    components = b""
    for kind, head, _ in segments(file, 0):
        if kind in FRAMES:
            components = head[7:8]
        if kind == SCAN:
            return head[2:3] != components
    return False


def _last_piece(file: IO[bytes], tags: Mapping[int, Any]) -> IO[bytes]:
    """The last strip or tile of a TIFF as a JPEG of its own, behind the tables that all share."""
    tiled = TILE_BYTES in tags
    places = tags[TILE_PLACES if tiled else STRIP_PLACES]
    sizes = tags[TILE_BYTES if tiled else STRIP_BYTES]
    file.seek(places[-1])
    held = file.read(min(sizes[-1], MOST))
    tables = tags.get(TABLES, b"").rpartition(JPEG_END)[0] or held[:2]
    return io.BytesIO(tables + held[2:] + JPEG_END)


def _goes_on(file: IO[bytes]) -> bool:
    """Whether further data behind a JPEG's would change the picture.

    A decoder that has all blocks passes over them.
    """
    end = None
    for kind, _, place in segments(file, 0):
        if kind in ARITHMETIC:
            return False
        if kind == END:
            end = place
    if end is None or end > MOST:  # without an end Pillow itself tells what is missing
        return False
    file.seek(0)
    data = file.read(end)
    return _decoded(data) != _decoded(data + MORE)


def _decoded(data: bytes) -> bytes:
    with JpegImagePlugin.JpegImageFile(io.BytesIO(data + JPEG_END)) as image:
        image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
        return image.tobytes()
