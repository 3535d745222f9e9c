"""What of an image is refused by its header, before its pixels are decoded."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from typing import IO, Any

from PIL import Image

__all__ = [
    "BITS_PER_SAMPLE",
    "COMPRESSION",
    "END",
    "FRAMES",
    "MAX_PIXELS",
    "PHOTOMETRIC",
    "PNG",
    "SCAN",
    "STRIP_BYTES",
    "TILE_BYTES",
    "WHITE_IS_ZERO",
    "ImageFault",
    "check_header",
    "check_pieces",
    "segments",
]

MAX_PIXELS = 64_000_000
MAX_ASPECT = 64  # beyond it, resizing the shorter side would make a gigantic strip
# Each scan of a JPEG is a walk over all its blocks, whatever few bytes it has. Encoders' own
# scripts have 10 (24 for four colours), and libtiff and browsers' decoders give up at 100 too.
MOST_SCANS = 100
MOST_SCANNED = 25 * MAX_PIXELS  # scans times pixels: 64 scans at 25 million pixels
MOST_SEGMENTS = 10_000  # of 64 KiB at most; each costs a step of a loop
SMALL = 1024  # bytes: encoders split pixels into pieces of 8 KiB and more
BLOCK = 1 << 16  # bytes of a file that are looked through at a time
HEAD = 20  # bytes of a segment that are looked at: a frame's four components, or a scan's
# In a scan's data FF is followed by 0, or by the number of a restart.
MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
PNG = b"\x89PNG\r\n\x1a\n"
REMARK = re.compile(rb"#[^\r\n]*")  # of a PPM
START, END, SCAN = 0xD8, 0xD9, 0xDA
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
PROGRESSIVE = (0xC2, 0xCA)
UNSENT = 16  # bits: more than any scan leaves out
# Tags of TIFF, and what the first of them says.
PHOTOMETRIC = 262
BITS_PER_SAMPLE, COMPRESSION, FILL_ORDER, PLANES, SUBSAMPLING = 258, 259, 266, 284, 530
STRIP_BYTES, TILE_WIDTH, TILE_LENGTH, TILE_BYTES = 279, 322, 323, 325
WHITE_IS_ZERO, SHADES, COLOURS, PALETTE, INKS, LUMINANCE = 0, 1, 2, 3, 5, 6


class ImageFault(ValueError):
    """Why an image is not taken, in words that may follow its name and "is".

    `fix` is the way out; empty where the file is no image, or a damaged one.
    """

    def __init__(self, reason: str, fix: str = "") -> None:
        super().__init__(reason)
        self.fix = fix


def check_pieces(file: IO[bytes]) -> None:
    """Raise ImageFault if a file is cut into so many small pieces that opening it takes long.

    Pillow goes through them one by one in Python, before it tells so much as the image's size. The
    file is left at its beginning.
    """
    file.seek(0)
    beginning = file.read(len(PNG))
    sizes: Iterator[int] = iter(())
    if beginning == PNG:
        sizes, name = _chunks(file), "chunks"
    elif beginning[:3] == b"\xff\xd8\xff":
        sizes, name = _segments_ahead(file), "segments"
    elif beginning[:6] in (b"GIF87a", b"GIF89a"):
        sizes, name = _blocks(file), "blocks"
    elif beginning[:1] == b"P" and beginning[1:2] in b"0123456fy":
        _check_words(beginning + file.read(BLOCK - len(beginning)))
    small = 0
    for size in sizes:
        small += size < SMALL
        if small > MOST_SEGMENTS:
            raise ImageFault(
                f"of over {MOST_SEGMENTS} {name}, which take long to decode",
                "save it again, without what is not its pixels",
            )
    file.seek(0)


def check_header(image: Image.Image) -> None:
    """Raise ImageFault if an image is too large or too long a strip, or is of a kind to refuse.

    Which are a JPEG of too many scans, and a TIFF that Pillow would scramble without a word.
    """
    _check_size(*image.size)
    if image.format in ("JPEG", "MPO"):
        _check_scans(image)
    if image.format == "TIFF":
        _check_layout(getattr(image, "tag_v2", {}), image.width * image.height)


def _chunks(file: IO[bytes]) -> Iterator[int]:
    """The bytes of each chunk of a PNG whose first eight bytes are read."""
    while len(head := file.read(8)) == 8:
        size = int.from_bytes(head[:4], "big")
        yield size
        file.seek(size + 4, io.SEEK_CUR)  # and its checksum


def _segments_ahead(file: IO[bytes]) -> Iterator[int]:
    """The bytes of each segment of a JPEG that comes before its pixels."""
    for kind, head, _ in segments(file, 0):
        if kind == SCAN:
            return
        yield int.from_bytes(head[:2], "big")


def _blocks(file: IO[bytes]) -> Iterator[int]:
    """The bytes of each block of a GIF that comes before its first picture."""
    file.seek(10)
    flags = file.read(3)[:1] or b"\0"
    if flags[0] & 0x80:
        file.seek(3 << (flags[0] % 8 + 1), io.SEEK_CUR)  # the colours that all pictures share
    while (kind := file.read(1)) not in (b"", b",", b";"):  # else a picture, or the end
        yield 0
        if kind != b"!":
            continue
        file.seek(1, io.SEEK_CUR)
        while size := file.read(1)[:1]:
            if not size[0]:
                break
            yield size[0]
            file.seek(size[0], io.SEEK_CUR)


def _check_words(start: bytes) -> None:
    """Refuse a PPM whose size does not follow soon: comments may stand between its words."""
    words = REMARK.sub(b" ", start).split(maxsplit=4)
    if len(start) == BLOCK and len(words) < (3 if start[1:2] in b"14" else 4):
        raise ImageFault(f"a PPM with a header of over {BLOCK} bytes", "save it without comments")


def _check_size(width: int, height: int) -> None:
    if not 0 < width * height <= MAX_PIXELS:
        raise ImageFault(f"{width}×{height}, outside 1..{MAX_PIXELS} pixels", "scale it down")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageFault(
            f"{width}×{height}, one side over {MAX_ASPECT} times the other",
            "cut it into pieces",
        )


def _check_scans(image: Image.Image) -> None:
    file, tiles = getattr(image, "fp", None), getattr(image, "tile", ())
    if file is None or not tiles:  # it is decoded already
        return
    most = min(MOST_SCANS, MOST_SCANNED // (image.width * image.height))
    place = file.tell()
    try:
        over, lacking = _over(file, tiles[0][2], most)
    finally:
        file.seek(place)
    if lacking and "progressive" in image.info:  # the two look alike
        raise ImageFault(
            "a JPEG that was cut off, or saved without its finest scans",
            "replace it, or save it again if it looks whole",
        )
    if lacking:
        raise ImageFault("a JPEG that was cut off, some of whose scans are missing", "replace it")
    if over:
        raise ImageFault(
            f"a JPEG of over {over}, which take long to decode", "save it again, not progressive"
        )


def _over(file: IO[bytes], start: int, most: int) -> tuple[str, bool]:
    """What a JPEG at `start` has too many of, empty for nothing; whether it lacks scans instead."""
    frame, components, scans = 0, b"", 0
    unsent: dict[int, list[int]] = {}  # of each component, lower bits of its 64 coefficients
    for number, (kind, head, _) in enumerate(segments(file, start)):
        if kind in FRAMES:
            frame, components = kind, head[7:8]
            ids = head[8 : 8 + 3 * int.from_bytes(components, "big") : 3]
            unsent = {component: [UNSENT] * 64 for component in ids}
        scans += kind == SCAN
        # What holds all components in its first scan is decoded by that one alone.
        if scans == 1 and kind == SCAN and frame not in PROGRESSIVE and head[2:3] == components:
            return "", False
        if kind == SCAN:
            _note_sent(head, unsent, frame in PROGRESSIVE)
        if scans > most:
            return f"{most} scans", False
        if number > MOST_SEGMENTS:
            return f"{MOST_SEGMENTS} segments", False
    return "", any(map(any, unsent.values()))


def _note_sent(head: bytes, unsent: dict[int, list[int]], progressive: bool) -> None:
    """Take from `unsent` what the scan with that header brings."""
    end = 3 + 2 * int.from_bytes(head[2:3], "big")
    first, last, bits = (*head[end : end + 3], 0, 0, 0)[:3] if progressive else (0, 63, 0)
    for component in set(head[3:end:2]) & set(unsent):
        unsent[component][first : last + 1] = [bits & 0xF] * len(range(64)[first : last + 1])


def segments(file: IO[bytes], place: int) -> Iterator[tuple[int, bytes, int]]:
    """Each marker of a JPEG at `place`, the first bytes of its segment, and where in the file it
    is, to the image's end.

    Previews inside a segment are passed over with it, and images that follow are not reached. What
    libjpeg passes over without a length is passed over alike, so that no scan hides there.
    """
    while True:
        file.seek(place)
        block = file.read(BLOCK)
        last, at = len(block) < BLOCK, 0
        while found := MARKER.search(block, at):
            kind, head = block[found.end() - 1], block[found.end() : found.end() + HEAD]
            if len(head) < HEAD and not last:
                at = found.start()  # and read on from there
                break
            yield kind, head, place + found.start()
            if kind == END:
                return
            bare = kind < min(FRAMES) or kind == START
            at = found.end() + (0 if bare else int.from_bytes(head[:2], "big"))
        else:
            at = max(at, len(block) - 1)  # a marker may be cut in two
        if last:
            return
        place += at


def _check_layout(tags: Mapping[int, Any], pixels: int) -> None:
    """Refuse what Pillow's own reading of raw pixels takes for another layout; libtiff does not."""
    if tags.get(COMPRESSION, 1) != 1:
        return
    kind, bits = tags.get(PHOTOMETRIC, WHITE_IS_ZERO), set(tags.get(BITS_PER_SAMPLE, (1,)))
    # Of a plane Pillow keeps one letter: neither its depth nor how its numbers are turned round.
    known = {8: (SHADES, COLOURS, PALETTE, INKS), 1: (SHADES,)}
    plain = all(kind in known.get(x, ()) for x in bits) and tags.get(FILL_ORDER, 1) == 1
    if tags.get(PLANES, 1) == 2 and not plain:
        raise ImageFault(
            "a TIFF stored plane by plane without compression, which is read for 8 bits a channel "
            "in RGB, CMYK or grey alone",
            "store it pixel by pixel (PlanarConfiguration 1) or compressed",
        )
    # What is not said is two by two; as writers forget to say it, the bytes may tell otherwise.
    coarse = tuple(tags.get(SUBSAMPLING, (2, 2))) != (1, 1)
    tiles = tags.get(TILE_BYTES) or ()
    held = sum(tiles or tags.get(STRIP_BYTES) or ())
    if tiles:  # which are whole at the edges too
        pixels = tags.get(TILE_WIDTH, 0) * tags.get(TILE_LENGTH, 0) * len(tiles)
    several = len(tags.get(BITS_PER_SAMPLE, ())) == 3
    if kind == LUMINANCE and several and coarse and held < 3 * pixels:
        raise ImageFault(
            "a TIFF of YCbCr without compression whose colours are coarser than its shades",
            "store it as RGB, or compressed",
        )
