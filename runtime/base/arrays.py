"""Arrays of bools as text."""

from __future__ import annotations

import numpy as np

__all__ = ["bits_from_hex", "bits_to_hex"]


def bits_to_hex(bits: np.ndarray) -> str:
    """Bools in hex, the first in the highest bit; zeros fill the last byte."""
    return np.packbits(bits).tobytes().hex()


def bits_from_hex(text: str, count: int) -> np.ndarray:
    """The first `count` bools of `bits_to_hex`. Raises ValueError where that is no hex."""
    packed = np.frombuffer(bytes.fromhex(text), np.uint8)
    return np.unpackbits(packed, count=count).astype(bool)
