"""A small JPEG of very many scans holds a core for as long as its sender likes: it is refused."""

from __future__ import annotations

import io
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prunion.runtime.errors import InputError
from prunion.runtime.images import open_image
from prunion.runtime.images.image_check import ImageCheck
from tests.trainer.data.test_images import refused as refused_alike

SCAN = b"\xff\xda"
COMMENT = b"\xff\xfe" + (4000 * len(SCAN) + 2).to_bytes(2, "big") + SCAN * 4000
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8))


def stored(image: Image.Image, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", **options)
    return stream.getvalue()


def repeated(scans: int, between: bytes = b"", side: int = 32) -> bytes:
    """A progressive JPEG of six scans, and its last one so many times more."""
    data = stored(Image.new("L", (side, side), 128), progressive=True)
    assert data.count(SCAN) == 6
    return data[:-2] + (between + data[data.rindex(SCAN) : -2]) * scans + data[-2:]


def one_by_one(scans: int) -> bytes:
    """A JPEG that is not progressive, its components in so many scans."""
    data, grey = stored(NOISE, subsampling=0), stored(NOISE.convert("L"))
    head, held = b"\0\x08\x01%c\0\0\x3f\0", grey[grey.index(SCAN) + 10 : -2]
    each = (SCAN + head % (1 + n % 3) + held for n in range(scans))
    return data[: data.index(SCAN)] + b"".join(each) + data[-2:]


def refused(data: bytes, says: str, folder: Path) -> None:
    path = folder / "x.jpg"
    path.write_bytes(data)
    for source in (data, path, Image.open(path)):
        with pytest.raises(InputError, match=f"{says}, which take long .*: save it again, not"):
            open_image(source)
    refused_alike(data, says)


@pytest.mark.parametrize(
    "data",
    [
        repeated(95),
        repeated(95, between=COMMENT),
        # Restarts without their data, and a marker that libjpeg passes over without a length.
        repeated(95, between=b"\xff\xd0" * 9 + b"\xff\x02"),
        one_by_one(101),
    ],
    ids=["progressive", "comments", "restarts", "components"],
)
def test_a_jpeg_of_very_many_scans_is_refused(data: bytes, tmp_path: Path) -> None:
    refused(data, "is a JPEG of over 100 scans|cannot be read .a JPEG of over 100 scans", tmp_path)


def test_larger_images_may_have_fewer_scans(tmp_path: Path) -> None:
    assert open_image(repeated(30)).size == (32, 32)
    refused(repeated(30, side=7200), "a JPEG of over 30 scans", tmp_path)


def test_segments_without_end_are_refused(tmp_path: Path) -> None:
    refused(repeated(20, between=b"\xff\xfe\0\2" * 600), "over 10000 segments", tmp_path)


@pytest.mark.parametrize("progressive", [False, True])
def test_previews_comments_and_further_images_are_no_scans(progressive: bool) -> None:
    thumbnail = repeated(94)
    app = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    data = stored(NOISE, quality=100, progressive=progressive)
    assert len(data) > 2 << 16, "blocks"
    held = data[:2] + app + COMMENT + data[2:-2] + (COMMENT * 9 if progressive else b"") + data[-2:]
    # As the several images of an MPO stand one behind the other.
    for found in (held, held + repeated(200)):
        np.testing.assert_array_equal(open_image(found), open_image(data))
        ImageCheck("exif").check([found], ["x"])


def test_every_encoder_s_scans_are_taken() -> None:
    for mode in ("L", "RGB", "CMYK"):
        data = stored(NOISE.convert(mode), progressive=True)
        assert open_image(data).size == NOISE.size
    assert open_image(one_by_one(3)).size == NOISE.size
    with pytest.raises(InputError, match="cut off, some of whose scans are missing: replace it"):
        open_image(one_by_one(2))


def test_looking_for_scans_is_linear() -> None:
    """A run of the byte that begins a marker, of any length."""
    data = stored(NOISE, progressive=True)
    began = time.perf_counter()
    open_image(data[:-2] + b"\xff" * (8 << 20) + data[-2:])
    assert time.perf_counter() - began < 5
