"""Widths off a backend's fast path are named by arithmetic, and only where pruning left them so."""

from __future__ import annotations

import numpy as np
import pytest

from prunion.runtime.base import default_round_to
from prunion.runtime.bundle import Layer, UnitTable, block_of, multiples_below, widths_warning

WIDTHS = {"conv1": (64, 62), "a": (64, 48), "stem": (24, 24), "b": (128, 40), "c": (32, 30)}


def test_blocks_follow_the_backend_and_what_it_computes_in() -> None:
    assert block_of("cpu") == block_of("openvino", "int8") == default_round_to()
    assert block_of("tensorrt", "fp16-uint8") == block_of("cuda", "fp16") == 8
    assert block_of("tensorrt", "int8") == 32
    assert block_of("auto") is None, "float32 has no blocks on a GPU"


@pytest.mark.parametrize(
    ("block", "named"),
    [
        (16, "3 of 5 layers are cut to widths off the fast path of this CPU, no multiples of 16 "
         "(conv1 62, b 40, c 30; 1 more were so before pruning)"),
        (8, "2 of 5 layers are cut to widths off the fast path of this CPU, no multiples of 8 "
         "(conv1 62, c 30): set [budget] round_to = 8"),
    ],
)  # fmt: skip
def test_the_warning_counts_and_names_them(block: int, named: str) -> None:
    assert named in widths_warning(WIDTHS, block, "this CPU")


def test_widths_that_fit_or_were_never_cut_are_not_named() -> None:
    assert widths_warning({"a": (64, 48), "stem": (24, 24)}, 16, "this CPU") == ""
    assert widths_warning(WIDTHS, None, "this GPU") == ""


def test_what_the_multiples_below_would_multiply() -> None:
    """Of 20 and 6 channels 16 stay of the first; what is narrower than a block stays."""
    slots = {("a", 0): np.arange(20), ("b", 1): np.arange(20), ("b", 0): np.arange(20, 26)}
    layers = (Layer("a", (20, 3, 1, 1), 1), Layer("b", (6, 20, 1, 1), 1))
    alive, share = multiples_below(UnitTable(26, slots, layers), 16)
    assert np.flatnonzero(~alive).tolist() == [16, 17, 18, 19]
    assert share == (16 * 3 + 6 * 16) / (20 * 3 + 6 * 20)
