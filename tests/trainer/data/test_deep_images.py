"""Images of 16 bits a channel whose numbers are those of 12 or 10: they come out nearly black."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from zlib import compress, crc32

import numpy as np
import pytest
from PIL import Image

from prunion.runtime.images.image_check import ImageCheck

RAMP = np.linspace(0, 65535, 1600, dtype=np.uint16).reshape(40, 40)


@pytest.mark.parametrize("inverted", [False, True])
def test_sixteen_bits_that_hold_twelve_are_told(tmp_path: Path, inverted: bool) -> None:
    """Thermal cameras' and scanners' images reach the network nearly black."""
    check, names = ImageCheck("exif"), ["a", "b"]
    kind = {"format": "TIFF", "tiffinfo": {262: 0}} if inverted else {"format": "PNG"}

    def encoded(most: int) -> bytes:
        stream, ramp = io.BytesIO(), (RAMP.astype(np.int64) * most // 65535).astype(np.uint16)
        Image.fromarray(65535 - ramp if inverted else ramp).save(stream, **kind)
        return stream.getvalue()

    check.check([encoded(4095), encoded(1000)], names)
    dim = "of 16 bits, scaled to 8, though none goes beyond 4095 of 65535: nearly black"
    assert check.met == {dim: 2}
    check.check([encoded(65535)], ["c"])
    assert check.met == {"of 16 bits, scaled to 8": 3}


@pytest.mark.parametrize(("kind", "channels"), [(2, 3), (6, 4), (4, 2)], ids=["rgb", "rgba", "la"])
def test_deep_colours_that_hold_twelve_are_told(kind: int, channels: int) -> None:
    """Of several channels Pillow keeps the upper eight bits, and says so nowhere."""

    def encoded(most: int) -> bytes:
        def chunk(name: bytes, data: bytes) -> bytes:
            return (
                struct.pack(">I4s", len(data), name) + data + struct.pack(">I", crc32(name + data))
            )

        row = b"\0" + np.full((4, channels), most, ">u2").tobytes()
        header = struct.pack(">IIBBBBB", 4, 2, 16, kind, 0, 0, 0)
        data = compress(row * 2)
        parts = chunk(b"IHDR", header), chunk(b"IDAT", data), chunk(b"IEND", b"")
        return b"\x89PNG\r\n\x1a\n" + b"".join(parts)

    check = ImageCheck("exif")
    check.check([encoded(4095), encoded(900)], ["a", "b"])
    clear = {"with transparency, which is dropped": 2} if channels != 3 else {}
    dim = "of 16 bits, scaled to 8, though none goes beyond 4095 of 65535: nearly black"
    assert check.met == {dim: 2, **clear}
    check.check([encoded(65535)], ["c"])
    assert check.met["of 16 bits, scaled to 8"] == 3


def test_a_bitmap_of_sixteen_bits_in_all_is_not_deep() -> None:
    header = struct.pack("<IiiHHIIiiII", 40, 2, 2, 1, 16, 3, 8, 0, 0, 0, 0)
    masks = struct.pack("<III", 0xF800, 0x07E0, 0x001F)
    start = 14 + len(header) + len(masks)
    data = b"BM" + struct.pack("<IHHI", start + 8, 0, 0, start) + header + masks + b"\x0f" * 8
    check = ImageCheck("exif")
    check.check([data], ["a"])
    assert check.met == {}
