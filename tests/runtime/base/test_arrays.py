"""Bits as text: the same again, and nothing for a text of fewer or more."""

from __future__ import annotations

import numpy as np
import pytest

from prunion.runtime.base import bits_from_hex, bits_to_hex


@pytest.mark.parametrize("count", [0, 1, 8, 21])
def test_bits_come_back(count: int) -> None:
    bits = np.arange(count) % 3 == 0
    assert (bits_from_hex(bits_to_hex(bits), count) == bits).all()


@pytest.mark.parametrize(("text", "count"), [("ff", 9), ("ffff", 8), ("", 1), ("", -3), ("f", 4)])
def test_bits_that_are_fewer_or_more_are_none(text: str, count: int) -> None:
    """Those that a damaged record lacks were read as zeros: as wrong answers, as unused units."""
    with pytest.raises(ValueError, match=r"are not|hexadecimal"):
        bits_from_hex(text, count)
