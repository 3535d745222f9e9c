"""How far numbers are from those that they should be, and bits as text."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["bits_from_hex", "bits_to_hex", "relative_error", "unpack_bits"]

LEAST = 1e-12  # where all is zero, any difference is large


def relative_error(expected: Any, got: Any, largest: float | None = None) -> float:
    """`max |Δ| / max |expected|` of two arrays of numpy, or two tensors of torch; NaN if either is.

    Args:
        largest: to be divided by in place of `max |expected|`.
    """
    of = float(abs(expected).max()) if largest is None else largest
    return float(abs(expected - got).max()) / max(of, LEAST)


def bits_to_hex(bits: np.ndarray) -> str:
    """Bools in hex, the first in the highest bit; zeros fill the last byte."""
    return np.packbits(bits).tobytes().hex()


def bits_from_hex(text: str, count: int) -> np.ndarray:
    """The `count` bools of `bits_to_hex`. Raises ValueError where that is no hex of so many."""
    return unpack_bits(bytes.fromhex(text), count)


def unpack_bits(packed: bytes, count: int) -> np.ndarray:
    """The `count` bools of `np.packbits`. Raises ValueError where `packed` is of fewer or more."""
    if count < 0 or len(packed) != -(-count // 8):
        raise ValueError(f"{len(packed)} bytes are not {count} bits")
    return np.unpackbits(np.frombuffer(packed, np.uint8), count=count).astype(bool)
