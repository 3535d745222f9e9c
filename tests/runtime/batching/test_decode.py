"""What an image takes of the memory that all of them share while they are decoded."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image, features

from prunion.runtime.batching.decode import Budget, Decoder
from prunion.runtime.errors import InputError
from prunion.runtime.model import Model

KINDS = ("JPEG", "PNG", "GIF", "TIFF", "BMP", *(("WEBP",) if features.check("webp") else ()))


def stored(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (40, 30)).save(stream, kind)
    return stream.getvalue()


def test_a_webp_counts_twice(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes twice the memory, so that two of the largest are not decoded at a time."""
    held: list[int] = []

    class Told(Budget):
        @contextmanager
        def hold(self, amount: int) -> Iterator[None]:
            held.append(amount)
            with super().hold(amount):
                yield

    monkeypatch.setattr("prunion.runtime.batching.decode.Budget", Told)
    decoder = Decoder(1, max_pixels=1200)
    items = [stored(kind) for kind in KINDS]
    for item in (*items, np.zeros((1, 30, 40, 3), np.uint8)):
        asyncio.run(
            decoder.images([item] if isinstance(item, bytes) else item, model.sessions.form)
        )
    assert held == [1200 * (1 + (kind == "WEBP")) for kind in KINDS] + [1200]
    decoder.max_pixels = 1199  # of the file, whatever its kind
    for item in items:
        with pytest.raises(InputError, match="takes 1199 pixels at most"):
            asyncio.run(decoder.images([item], model.sessions.form))
    decoder.close()
