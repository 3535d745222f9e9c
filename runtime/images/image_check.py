"""Each image of a data set: checked when the set is opened, and held to that when it is read."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from prunion.runtime.base import Orientation, is_pipe, reader_threads, reason_of
from prunion.runtime.errors import DataError
from prunion.runtime.images.decode import (
    bits_of,
    brightest_of,
    holds_deep_colour,
    read_image,
    to_rgb,
    turn_of,
)
from prunion.runtime.images.headers import ImageFault

__all__ = ["ImageCheck", "decode_image"]

AT_ONCE = 1024
DEEP = "of 16 bits, scaled to 8"
DIM = 1 << 13  # an eighth of 16 bits: 10 and 12 bits end below
BLOCK = 1 << 20  # bytes of a file that are read at a time
JPEG_END = b"\xff\xd9"  # stands nowhere in the data before
TAIL = 1024  # bytes that some programs write behind it


def decode_image(
    data: Path | bytes | Image.Image,
    what: str,
    orientation: Orientation,
    known: int | None = None,
) -> Image.Image:
    """The image in a file, or its bytes, as RGB.

    Args:
        known: what `ImageCheck.prints` has of it: a run says which images it was made of by what it
            saw when they were opened, so no other may be read in their place later.

    Raises DataError, naming it as `what`, for what `prunion.runtime.images` does not take, and for
    what is not as it is `known`.
    """
    try:
        if isinstance(data, Path) and known is not None and not is_pipe(data):
            with data.open("rb") as file:  # once, so that what is compared is what is decoded
                _check_known(file, what, known)
                return read_image(file, lambda image: to_rgb(image, orientation))
        if isinstance(data, bytes) and known is not None:
            _check_known(data, what, known)
        return read_image(data, lambda image: to_rgb(image, orientation))
    except (ImageFault, OSError) as exc:
        raise _unreadable(what, exc) from None


def _check_known(data: BinaryIO | bytes, what: str, known: int) -> None:
    """Raise DataError for an image, in an open file or its bytes, that is another one by now."""
    if _print_of(data) != known:
        raise DataError(
            f"{what} is no longer what it was when the images were opened: put it back or begin "
            "again, and leave images as they are while they are read"
        )


@dataclass
class ImageCheck:
    """Checks a data set's images, part by part: the first `deep_bytes` of them to the last pixel.

    Of those after them only headers are looked at, so that opening a large data set stays quick,
    and a JPEG without its end, as a broken download leaves it.

    Attributes:
        met: how many images there are of each kind that is not taken just as it is stored.
        prints: of the bytes of each image, in order: 64 bits as a signed number.
    """

    orientation: Orientation
    deep_bytes: int = 64 << 20
    met: Counter[str] = field(default_factory=Counter)
    prints: list[int] = field(default_factory=list)
    # Largest numbers of 16-bit images that were read, by whichever thread; -1 for none.
    brightest: list[int] = field(default_factory=list, init=False)

    def check(self, images: Sequence[Path | bytes], names: Sequence[str]) -> None:
        """Raise one DataError that names the first image of `images` that cannot be read."""
        with ThreadPoolExecutor(reader_threads()) as pool:
            for start in range(0, len(images), AT_ONCE):
                some = images[start : start + AT_ONCE]
                deep = [self._is_deep(image) for image in some]
                bad = []
                for found in pool.map(self._seen, some, names[start : start + AT_ONCE], deep):
                    if isinstance(found, DataError):
                        bad.append(found)
                    else:
                        self.prints.append(found[0])
                        self.met.update(found[1])
                self._tell_dim()
                if bad:
                    raise DataError(f"{bad[0]}{_and_others(bad[1:])}")

    def _tell_dim(self) -> None:
        """Name deep images otherwise while none of those that were read is bright.

        Cameras store 10 and 12 bits in 16. The upper eight of those are next to nothing, in
        training and at the device alike, so that nothing else would show it.
        """
        most = max(self.brightest, default=-1)
        self.brightest = [most]
        dim = f"{DEEP}, though none goes beyond {most} of 65535: nearly black"
        found = sum(self.met.pop(kind) for kind in list(self.met) if kind.startswith(DEEP))
        if found:
            self.met[dim if 0 <= most < DIM else DEEP] = found

    def _is_deep(self, image: Path | bytes) -> bool:
        with suppress(OSError):  # opening the file will say what is wrong
            self.deep_bytes -= len(image) if isinstance(image, bytes) else image.stat().st_size
        return self.deep_bytes > 0

    def _seen(
        self, image: Path | bytes, name: str, deep: bool
    ) -> tuple[int, list[str]] | DataError:
        def use(opened: Image.Image) -> list[str]:
            # Before it is loaded: Pillow turns a TIFF then, and takes the tag away.
            turned = self.orientation == "exif" and _is_turned(opened)
            deep_colour = holds_deep_colour(opened)
            _load_small(opened) if deep or _lacks_end(opened, image) else opened.verify()
            if deep:
                self.brightest.append(brightest_of(opened, deep_colour))
            return _traits(opened, turned, deep_colour)

        try:
            return _print_of(image), read_image(image, use)
        except (ImageFault, OSError) as exc:
            return _unreadable(name, exc)


def _print_of(image: Path | bytes | BinaryIO) -> int:
    """64 bits of an image's bytes, as a signed number; a file that is open is at its start then."""
    if isinstance(image, Path):
        with image.open("rb", buffering=0) as file:
            return _print_of(file)
    sha = hashlib.sha256()
    if isinstance(image, bytes):
        sha.update(image)
    else:
        while block := image.read(BLOCK):
            sha.update(block)
        image.seek(0)
    return int.from_bytes(sha.digest()[:8], "big", signed=True)


def _lacks_end(opened: Image.Image, image: Path | bytes) -> bool:
    """Whether a JPEG may be cut off: `verify` does not notice, and the last epoch would."""
    if opened.format not in ("JPEG", "MPO"):
        return False
    if isinstance(image, bytes):
        return JPEG_END not in image[-TAIL:]
    with image.open("rb") as file:
        file.seek(max(0, image.stat().st_size - TAIL))
        return JPEG_END not in file.read()


def _and_others(bad: list[DataError]) -> str:
    """How many more images cannot be read, and which is next."""
    if not bad:
        return ""
    following = str(bad[0]).partition(" cannot be read")[0]
    what = "1 more image" if len(bad) == 1 else f"{len(bad)} more images"
    return f"; {what} cannot be read either, such as {following}"


def _is_turned(image: Image.Image) -> bool:
    return ("exif" in image.info or image.format == "TIFF") and turn_of(image) is not None


def _traits(image: Image.Image, turned: bool, deep_colour: bool) -> list[str]:
    """What of an image does not reach the network as it is stored."""
    animated = False
    with suppress(Exception):  # damage behind what is used of the image
        # A camera's JPEG may hold previews and depth maps as further frames: no animation.
        animated = image.format != "MPO" and getattr(image, "is_animated", False)
    told = {
        DEEP: deep_colour or bits_of(image) > 8,
        "of several frames, the first taken": animated,
        "turned by their EXIF orientation": turned,
        "with transparency, which is dropped": (
            image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info
        ),
    }
    return [kind for kind, is_so in told.items() if is_so]


def _load_small(image: Image.Image) -> None:
    # A JPEG's whole stream is read at an eighth of the size: a cheap proof that it is complete.
    image.draft("RGB", (max(1, image.width // 8), max(1, image.height // 8)))
    image.load()


def _unreadable(what: str, exc: Exception) -> DataError:
    fix = getattr(exc, "fix", "") or "remove it or replace it"
    return DataError(f"{what} cannot be read ({reason_of(exc)}): {fix}")
