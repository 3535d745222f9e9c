"""Find the unreadable images of a data set before training starts, not hours into it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from prunion.runtime.errors import DataError
from prunion.trainer.images import check_image

__all__ = ["ImageCheck"]

AT_ONCE = 1024


@dataclass
class ImageCheck:
    """Checks images until told there are no more, the first `deep_bytes` of them to the last pixel.

    Past that only headers are read, so that opening a large data set stays quick.
    """

    deep_bytes: int = 64 << 20

    def check(self, images: Sequence[Path | bytes], names: Sequence[str]) -> None:
        """Raise one DataError that names the first image of `images` that cannot be read."""
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(images), AT_ONCE):
                some = images[start : start + AT_ONCE]
                deep = [self._is_deep(image) for image in some]
                found = pool.map(_error, some, names[start : start + AT_ONCE], deep)
                bad = [error for error in found if error is not None]
                if bad:
                    more = f" (and {len(bad) - 1} more like it)" if len(bad) > 1 else ""
                    raise DataError(f"{bad[0]}{more}")

    def _is_deep(self, image: Path | bytes) -> bool:
        with suppress(OSError):  # opening the file will say what is wrong
            self.deep_bytes -= len(image) if isinstance(image, bytes) else image.stat().st_size
        return self.deep_bytes > 0


def _error(image: Path | bytes, name: str, deep: bool) -> DataError | None:
    try:
        check_image(image, name, deep=deep)
    except DataError as exc:
        return exc
    return None
