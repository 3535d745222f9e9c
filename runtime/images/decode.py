"""One image in any form to 8-bit RGB: the one rule of training, evaluation and answering."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, BinaryIO, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from prunion.runtime.base import Orientation, install_hint, is_pipe, reason_of
from prunion.runtime.errors import InputError
from prunion.runtime.images.headers import (
    BITS_PER_SAMPLE,
    MAX_PIXELS,
    PHOTOMETRIC,
    WHITE_IS_ZERO,
    ImageFault,
    check_header,
    check_pieces,
)
from prunion.runtime.images.whole import check_whole

__all__ = [
    "FORMATS",
    "IMAGE_SUFFIXES",
    "bits_of",
    "brightest_of",
    "can_decode",
    "holds_deep_colour",
    "image_kind",
    "open_image",
    "read_image",
    "to_rgb",
    "turn_of",
]

Result = TypeVar("Result")

# Other plugins run outside programs (EPS) or read formats nobody trains on.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
# A broken file of these names is an error; any other is read if its content is that of an image.
IMAGE_SUFFIXES = (
    *(".apng", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm"),
    *(".ppm", ".tif", ".tiff", ".webp"),
)
# What bytes 4 to 12 of a file say that only newer Pillows (AVIF) or pillow-heif (HEIF) decode.
BRANDS = {
    **dict.fromkeys((b"ftypavif", b"ftypavis"), "AVIF"),
    **dict.fromkeys((b"ftypheic", b"ftypheix", b"ftyphevc", b"ftyphevx"), "HEIF"),
    **dict.fromkeys((b"ftypheim", b"ftypheis", b"ftypmif1", b"ftypmsf1"), "HEIF"),
}
# What files of a format begin with, of which Pillow says no more than that it knows none of it.
BEGINNINGS = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    **dict.fromkeys((b"GIF87a", b"GIF89a"), "GIF"),
    **dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "TIFF"),  # the latter are BigTIFF
}
ORIENTATION = 0x0112  # the EXIF tag, and what undoes each of its values
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ROTATIONS = (Image.Transpose.ROTATE_270, Image.Transpose.ROTATE_90)
BACK = dict(zip(ROTATIONS, reversed(ROTATIONS), strict=True))  # the others undo themselves
SAMPLE_FORMAT, SIGNED = 339, 2  # of TIFF


def open_image(
    source: str | Path | bytes | Image.Image, orientation: Orientation = "ignore"
) -> Image.Image:
    """Decode one image to RGB; "exif" turns it as its EXIF orientation says.

    Raises InputError for anything that is no image, is truncated, is too large or too long a
    strip, or holds other numbers than 8 or 16 bits a channel.
    """
    where = str(source) if isinstance(source, (str, Path)) else "the image"
    try:
        return read_image(source, lambda image: to_rgb(image, orientation))
    except ImageFault as exc:
        what = str(exc) if exc.fix else f"no readable image ({exc})"
        fix = exc.fix or f"give one of {', '.join(FORMATS)}"
        raise InputError(f"{where} is {what}: {fix}") from None
    except FileNotFoundError:
        raise InputError(f"{where} does not exist: give an image's path") from None
    except MemoryError:
        raise InputError(f"{where} does not fit into memory: scale it down") from None


def read_image(
    source: str | Path | bytes | BinaryIO | Image.Image, use: Callable[[Image.Image], Result]
) -> Result:
    """What `use` makes of an image that is opened, and whose header is that of a fair picture.

    A file that is open already stays so.

    Raises ImageFault, whatever went wrong inside `use` too; FileNotFoundError; MemoryError.
    """
    if isinstance(source, (str, Path)) and is_pipe(source):
        raise ImageFault("a pipe or a device", "give an image's file")
    try:
        with _opened(source) as image:
            check_header(image)
            bits_of(image)
            file = getattr(image, "fp", None)
            opened = bool(getattr(image, "tile", ()))
            result = use(image)
            if opened and not image.tile:  # type: ignore[attr-defined]
                check_whole(image, file)
            return result
    except (ImageFault, FileNotFoundError, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise ImageFault(f"larger than {MAX_PIXELS} pixels", "scale it down") from None
    except UnidentifiedImageError:
        reason = f"not an image of {', '.join(FORMATS)}"
    except Exception as exc:  # decoders raise anything on damaged data, struct.error among it
        reason = reason_of(exc)
    raise ImageFault(reason)


def to_rgb(image: Image.Image, orientation: Orientation) -> Image.Image:
    """An opened image as 8-bit RGB: its first frame, transparency dropped, 16 bits scaled to 8.

    Sixteen bits lose the lower eight, which is what Pillow does to 16-bit colours by itself: white
    is the type's largest number, 65535 (4095 of a 12-bit TIFF). Raises ImageFault if it is deeper.
    """
    bits = bits_of(image)
    # Pillow turns a TIFF when it loads it, and takes the tag away.
    stored = turn_of(image) if image.format == "TIFF" and orientation == "ignore" else None
    flat = image if bits == 8 else Image.fromarray(_high_byte(image, bits))
    # A file's image goes when the file is closed, one that is in memory needs no copy.
    rgb = flat if type(flat) is Image.Image and flat.mode == "RGB" else flat.convert("RGB")
    if stored is not None and turn_of(image) is None:
        return rgb.transpose(BACK.get(stored, stored))
    turn = turn_of(image) if orientation == "exif" else None
    if turn is None:
        return rgb
    rgb = rgb.transpose(turn)
    for key in ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"):
        rgb.info.pop(key, None)  # or whoever gets this image would turn it once more
    return rgb


def bits_of(image: Image.Image) -> int:
    """Bits of a channel: 8, 12 or 16. Raises ImageFault where nobody says what is white."""
    if image.mode.startswith("I;16"):
        return 12 if getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE) == (12,) else 16
    # Pillow widens the 16 bits of a PGM, and before version 10.1 those of a PNG.
    if image.mode == "I" and image.format in ("PNG", "PPM"):
        return 16
    if image.mode.startswith(("I", "F")):
        kind = "fractions" if image.mode.startswith("F") else "32-bit or signed numbers"
        raise ImageFault(
            f"of {kind}, more than 8 bits a channel without a largest one that is white",
            "convert it to 8 or 16 bits a channel",
        )
    if SIGNED in getattr(image, "tag_v2", {}).get(SAMPLE_FORMAT, ()):  # Pillow drops the sign
        raise ImageFault(
            "of signed numbers without one that is white", "convert it to 8 or 16 bits a channel"
        )
    return 8


def brightest_of(image: Image.Image, deep_colour: bool) -> int:
    """The largest number of a loaded image of 16 bits a channel; -1 of any other.

    With `deep_colour`, of which eight bits were read, the largest that these may stand for.
    """
    if deep_colour:
        return int(np.asarray(image.convert("RGB")).max()) * 256 + 255
    if bits_of(image) != 16:
        return -1
    numbers = np.asarray(image)
    inverted = getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO
    return 65535 - int(numbers.min()) if inverted else int(numbers.max())


def holds_deep_colour(image: Image.Image) -> bool:
    """Whether an image that is not loaded has 16 bits a channel and several channels.

    Of these Pillow reads the upper eight as they are: `bits_of` says 8 of such an image.
    """
    # "BGR;16" of a BMP has 16 bits in all; those of a channel have their bytes' order behind.
    deep = any(re.search(";16[BLN]", str(tile[3])) for tile in getattr(image, "tile", ()))
    return deep and not image.mode.startswith("I")


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """What the EXIF orientation of a loaded image asks for; None for nothing, or damaged EXIF."""
    with suppress(Exception):  # EXIF that cannot be parsed raises anything
        return TURNS.get(image.getexif().get(ORIENTATION, 1))
    return None


def image_kind(path: Path) -> str | None:
    """The format of a file by its first bytes, also where nothing decodes it; None: no image."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return image.format
    except Image.DecompressionBombError:
        return FORMATS[0]  # whichever it is, reading it will say what is wrong
    except Exception:  # what is no image fails in as many ways
        with suppress(OSError), open(path, "rb") as file:
            return _boxed_kind(file)
        return None


def can_decode(kind: str) -> bool:
    """Whether "AVIF" or "HEIF" can be decoded here: by Pillow itself, or with pillow-heif."""
    Image.init()
    if kind not in Image.OPEN:
        with suppress(ImportError):
            import pillow_heif

            pillow_heif.register_heif_opener()
            if kind == "AVIF" and hasattr(pillow_heif, "register_avif_opener"):
                pillow_heif.register_avif_opener()
    return kind in Image.OPEN


@contextmanager
def _opened(source: str | Path | bytes | BinaryIO | Image.Image) -> Iterator[Image.Image]:
    # No path: of a file whose name it knows Pillow maps raw pixels into memory, by the size that a
    # turned TIFF has after it is turned, and scrambles them.
    if isinstance(source, Image.Image):
        name = getattr(source, "filename", None)
        if source.format == "TIFF" and name:
            source.filename = ""  # type: ignore[attr-defined]
        try:
            yield source
        finally:
            if name is not None:
                source.filename = name  # type: ignore[attr-defined]
        return
    if isinstance(source, (str, Path)):
        with open(source, "rb") as file, _identified(file) as image:
            yield image
        return
    with _identified(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
        yield image


def _identified(file: IO[bytes]) -> Image.Image:
    check_pieces(file)
    try:
        return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        kind = _boxed_kind(file)
        if kind is None:
            _tell_beginning(file)
            raise
    if not can_decode(kind):
        raise ImageFault(
            f"{kind}, which takes the package pillow-heif to read", install_hint("heif")
        )
    file.seek(0)
    return Image.open(file, formats=[k for k in ("AVIF", "HEIF") if k in Image.OPEN])


def _tell_beginning(file: IO[bytes]) -> None:
    """Raise ImageFault for what begins as an image, which is no advice to give such an image."""
    file.seek(0)
    begins = file.read(8)
    for beginning, kind in BEGINNINGS.items():
        if begins.startswith(beginning):
            raise ImageFault(
                f"a {kind} that is damaged, or of a kind that cannot be read",
                "replace it, or convert it to 8 or 16 bits a channel, RGB or grey",
            )


def _boxed_kind(file: IO[bytes]) -> str | None:
    """AVIF or HEIF, if the first bytes say so."""
    file.seek(0)
    return BRANDS.get(file.read(12)[4:])


def _high_byte(image: Image.Image, bits: int) -> np.ndarray:
    """The upper 8 of `bits` bits, `[H, W]` uint8."""
    numbers = np.asarray(image)
    # Pillow turns such a TIFF's shades the right way round only where they have 8 bits.
    if getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO:
        numbers = (1 << bits) - 1 - numbers
    return (numbers >> (bits - 8)).astype(np.uint8)
