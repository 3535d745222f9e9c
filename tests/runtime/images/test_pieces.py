"""A file cut into very many small pieces is refused before Pillow goes through them in Python."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prunion.runtime.errors import InputError
from prunion.runtime.images import open_image
from prunion.runtime.images.headers import ImageFault, check_pieces

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8))


def stored(kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    NOISE.save(stream, kind, **options)
    return stream.getvalue()


def chunk(kind: bytes, held: bytes = b"") -> bytes:
    checksum = zlib.crc32(kind + held).to_bytes(4, "big")
    return len(held).to_bytes(4, "big") + kind + held + checksum


def many(kind: str, pieces: int) -> bytes:
    """An image with so many more pieces, each as short as the format lets it be."""
    if kind == "JPEG":
        data = stored("JPEG")
        return data[:2] + b"\xff\xe9\0\2" * pieces + data[2:]
    if kind.startswith("PNG"):
        data, where = stored("PNG"), 33
        if kind == "PNG's end":
            where = len(stored("PNG")) - 12
        held = chunk(b"IDAT") if kind == "PNG's pixels" else chunk(b"prIv")
        return data[:where] + held * pieces + data[where:]
    data = stored("GIF")
    where = 13 + (3 << (data[10] % 8 + 1))
    if kind == "GIF of one comment":
        return data[:where] + b"!\xfe" + b"\1x" * pieces + b"\0" + data[where:]
    return data[:where] + b"!\xfe\1x\0" * pieces + data[where:]


KINDS = ["JPEG", "PNG", "PNG's pixels", "PNG's end", "GIF", "GIF of one comment"]


@pytest.mark.parametrize("kind", KINDS)
def test_very_many_small_pieces_are_refused(kind: str, tmp_path: Path) -> None:
    data = many(kind, 10_010)
    path = tmp_path / "x"
    path.write_bytes(data)
    for source in (data, path):
        with pytest.raises(InputError, match=r"over 10000 .*, which take long to decode: save it"):
            open_image(source)


@pytest.mark.parametrize("kind", KINDS)
def test_as_many_as_an_encoder_may_write_are_taken(kind: str) -> None:
    plain = open_image(many(kind, 0))
    np.testing.assert_array_equal(np.asarray(open_image(many(kind, 3_000))), np.asarray(plain))


def test_pixels_in_many_pieces_of_an_encoder_s_size_are_taken() -> None:
    large = io.BytesIO(stored("PNG")[:33] + chunk(b"IDAT", b"x" * 1024) * 10_010)
    check_pieces(large)
    assert large.tell() == 0


def test_a_header_that_does_not_end_is_refused() -> None:
    held = b"\n8 6\n255\n" + b"#" * 144
    assert open_image(b"P6\n# by hand" + held).size == (8, 6)
    with pytest.raises(
        InputError, match=r"a PPM with a header of over 65536 bytes: save it without"
    ):
        open_image(b"P6\n#" + b" by hand" * 9_000 + held)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "PPM"])
def test_a_file_of_any_length_ends_the_search(kind: str) -> None:
    data = stored(kind)
    for length in (*range(60), len(data)):
        try:
            check_pieces(io.BytesIO(data[:length]))
        except ImageFault as exc:  # nothing of these is cut small
            raise AssertionError(length) from exc
