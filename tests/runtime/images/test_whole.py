"""A picture that ends properly and holds but a part of its pixels is refused, wherever it comes
from; one that only looks like it is not."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prunion.runtime.errors import DataError, InputError
from prunion.runtime.images import open_image
from prunion.runtime.images.image_check import ImageCheck, decode_image
from prunion.runtime.images.whole import CHANNELS, PASSES
from tests.runtime.images.test_scans import one_by_one

SCAN, END = b"\xff\xda", b"\xff\xd9"
RANDOM = np.random.default_rng(0)
WIDE, HIGH = 101, 75
PICTURE = Image.fromarray(RANDOM.integers(0, 256, (9, 13, 3), np.uint8)).resize((WIDE, HIGH))

# Eight by eight pixels, the last of which are grey, by libjpeg's arithmetic encoder.
ARITHMETIC = base64.b64decode(
    "/9j/2wBDABALDA4MChAODQ4SERATGCgaGBYWGDEjJR0oOjM9PDkzODdASFxOQERXRTc4UG1RV19iZ2hnPk1xeXBk"
    "eFxlZ2P/2wBDARESEhgVGC8aGi9jQjhCY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2Nj"
    "Y2NjY2NjY2P/yQARCAAIAAgDASIAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwDu3esCFFfzE67kqdmP"
    "5JtXlji8luLxsHCJmJE1/9k="
)


def png(
    share: float, kind: int = 2, bits: int = 8, *, interlaced: bool = False, most: int = 255
) -> bytes:
    """A PNG of random bytes up to `most`, of whose rows that share is there."""
    rows = []
    for x, y, across, down in PASSES if interlaced else ((0, 0, 1, 1),):
        size = (-(-(WIDE - x) // across) * CHANNELS[kind] * bits + 7) // 8
        count = len(range(y, HIGH, down))
        rows += [b"\0" + x.tobytes() for x in RANDOM.integers(0, most + 1, (count, size), np.uint8)]
    header = struct.pack(">IIBBBBB", WIDE, HIGH, bits, kind, 0, 0, interlaced)
    palette = [b"PLTE" + bytes(768)] if kind == 3 else []
    packed = zlib.compress(b"".join(rows[: int(share * len(rows))]))
    data = [b"IDAT" + packed[x : x + 5000] for x in range(0, len(packed), 5000)]
    chunks = [b"IHDR" + header, *palette, *data, b"IEND"]
    ends = [(struct.pack(">I", len(x) - 4), struct.pack(">I", zlib.crc32(x))) for x in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        a + x + b for x, (a, b) in zip(chunks, ends, strict=True)
    )


def jpeg(image: Image.Image = PICTURE, mode: str = "RGB", **options: object) -> bytes:
    stream = io.BytesIO()
    image.convert(mode).save(stream, "JPEG", **options)
    return stream.getvalue()


def cut(data: bytes, share: float) -> bytes:
    """A JPEG with that share of what follows its first scan's header, and an end."""
    start = data.index(SCAN) + 20
    return data[: start + int(share * (len(data) - start))].rstrip(b"\xff") + END


def check_refused(data: bytes, says: str, path: Path) -> None:
    path.write_bytes(data)
    for source in (data, path, Image.open(path), Image.open(io.BytesIO(data))):
        with pytest.raises(InputError, match=f" is {says}.*: replace it"):
            open_image(source)
    told = rf"x cannot be read \({says}.*\): replace it"
    for image in (data, path):
        check = ImageCheck("exif")
        with pytest.raises(DataError, match=told):
            check.check([image], ["x"])
        with pytest.raises(DataError, match=told):
            decode_image(image, "x", "exif")


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(
    ("kind", "bits"), [(0, 1), (0, 8), (0, 16), (2, 8), (2, 16), (3, 4), (4, 8), (6, 8), (6, 16)]
)
def test_a_png_lacks_no_row(kind: int, bits: int, interlaced: bool, tmp_path: Path) -> None:
    for share in (0.33, 0.999):
        short = png(share, kind, bits, interlaced=interlaced)
        check_refused(short, "a PNG that ends before its last row", tmp_path / "x.png")
    for most in (255, 0):  # of the latter the last row is as black as one that is missing
        whole = png(1, kind, bits, interlaced=interlaced, most=most)
        assert open_image(whole).size == (WIDE, HIGH)
        ImageCheck("exif").check([whole], ["x"])


def test_of_several_frames_the_first_is_looked_at(tmp_path: Path) -> None:
    path, frames = tmp_path / "x.png", [Image.new("RGB", (9, 9)), Image.new("RGB", (9, 9), "red")]
    for apart in (False, True):
        frames[0].save(path, save_all=True, append_images=frames[1:], default_image=apart)
        with Image.open(path) as image:
            assert open_image(image).getpixel((8, 8)) == (0, 0, 0)
            image.seek(image.n_frames - 1)  # type: ignore[attr-defined]
            assert image.convert("RGB").getpixel((8, 8)) == (255, 0, 0)


JPEGS: list[dict[str, object]] = [
    {},
    {"subsampling": 0, "quality": 95},
    {"mode": "L"},
    {"mode": "CMYK"},
    {"restart_marker_blocks": 3},
    {"restart_marker_rows": 1, "mode": "L"},
]


@pytest.mark.parametrize("options", JPEGS)
def test_a_jpeg_lacks_no_block(options: dict[str, object], tmp_path: Path) -> None:
    whole, grey = (jpeg(x, **options) for x in (PICTURE, Image.new("RGB", (WIDE, HIGH), "#808080")))  # type: ignore[arg-type]
    for data in (whole, grey, whole[:-2] + b"beyond" * 9 + END):
        assert open_image(data).size == (WIDE, HIGH)
        ImageCheck("exif").check([data], ["x"])
    for share in (0.1, 0.5, 0.9):
        check_refused(cut(whole, share), "a JPEG that was cut off before", tmp_path / "x.jpg")
    pieces = whole.split(b"\xff\xd0")
    if len(pieces) > 2:  # and where a piece between two restarts ends
        between = pieces[0] + b"\xff\xd0" + pieces[1].split(b"\xff\xd1")[0] + END
        check_refused(between, "a JPEG that was cut off before", tmp_path / "x.jpg")


def test_a_jpeg_whose_components_stand_one_behind_the_other_lacks_none(tmp_path: Path) -> None:
    whole = one_by_one(3)
    assert open_image(whole).size == (400, 300)
    last = whole.rindex(SCAN) + 10
    for share in (0.001, 0.5, 0.9):
        short = whole[: last + int(share * (len(whole) - last))].rstrip(b"\xff") + END
        check_refused(short, "a JPEG that was cut off before its last block", tmp_path / "x.jpg")


@pytest.mark.parametrize("rows", [16, 80])
@pytest.mark.parametrize("mode", ["RGB", "L", "YCbCr", "CMYK"])
def test_a_tiff_of_jpegs_lacks_no_part_of_its_last_strip(
    mode: str, rows: int, tmp_path: Path
) -> None:
    for turn in (1, 3):
        stream, tags = io.BytesIO(), {278: rows, 274: turn}
        PICTURE.convert(mode).save(stream, "TIFF", compression="jpeg", tiffinfo=tags)
        whole = stream.getvalue()
        for source in (whole, Image.open(stream)):
            assert open_image(source).size == (WIDE, HIGH)
        with Image.open(stream) as image:
            place, held = (image.tag_v2[tag][-1] for tag in (273, 279))  # type: ignore[attr-defined]
        for share in (0.6, 0.9):
            there = place + int(share * held)
            ended = (whole[:there].rstrip(b"\xff") + END).ljust(place + held, b"\0")
            tries = [ended + whole[place + held :]]
            if rows > HIGH:  # or without an end, by what the file says of its one strip's bytes
                before, after = whole.split(struct.pack("<HHII", 279, 4, 1, held))
                tries.append(before + struct.pack("<HHII", 279, 4, 1, there - place) + after)
            for short in tries:
                check_refused(
                    short, "a TIFF whose last strip or tile was cut off", tmp_path / f"{turn}.tif"
                )


def test_an_arithmetic_jpeg_is_taken_whose_zeros_at_the_end_are_left_out() -> None:
    assert open_image(ARITHMETIC).size == (8, 8)
    ImageCheck("exif").check([ARITHMETIC], ["x"])


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_progressive_jpeg_lacks_no_scan(mode: str, tmp_path: Path) -> None:
    data = jpeg(PICTURE, mode, progressive=True)
    scans = data.split(SCAN)
    for there in range(2, len(scans)):
        for partly in (data[: len(SCAN.join(scans[:there]))], SCAN.join(scans[:there])[:-9]):
            says = "a JPEG that was cut off, or saved without its finest scans"
            check_refused(partly + END, says, tmp_path / "x.jpg")
    assert open_image(data).size == (WIDE, HIGH)
