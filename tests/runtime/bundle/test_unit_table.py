"""Widths: which units are the channels of one, and how they are filled up to a multiple."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from prunion.runtime.bundle import UnitTable

AXES = st.lists(st.lists(st.integers(-1, 6), max_size=12), max_size=6)


@given(AXES)
def test_units_that_lie_on_the_same_axes_equally_often_are_one_width(axes: list[list[int]]) -> None:
    slots = {(f"w{n}", 0): np.array(units, dtype=np.int64) for n, units in enumerate(axes)}
    expected: dict[tuple[int, ...], list[int]] = {}
    for unit in range(7):
        expected.setdefault(tuple(axis.count(unit) for axis in axes), []).append(unit)
    found = UnitTable(7, slots).widths
    assert [members.tolist() for members in found] == list(expected.values())


def test_a_table_without_units_has_no_widths() -> None:
    table = UnitTable(0, {("w", 0): np.array([-1, -1])})
    assert table.widths == ()
    assert table.round_up(np.zeros(0, bool), 8).tolist() == []


def test_rounding_brings_back_the_best_of_each_width() -> None:
    table = UnitTable(8, {("w", 0): np.arange(8)})
    alive = np.array([True, False, False, False, False, False, False, False])
    score = np.array([9, 1, 8, 2, 7, 3, 6, 4.0])
    assert np.flatnonzero(table.round_up(alive, 4, score)).tolist() == [0, 2, 4, 6]
    assert np.flatnonzero(table.round_up(alive, 4)).tolist() == [0, 1, 2, 3]
    assert alive.sum() == 1, "what was given stays as it is"


def test_no_width_becomes_empty_or_wider_than_it_was() -> None:
    table = UnitTable(5, {("a", 0): np.arange(2), ("b", 0): np.arange(2, 5)})
    nothing, score = np.zeros(5, bool), np.array([0, 1, 0, 0, 1])
    assert np.flatnonzero(table.round_up(nothing, 1, score)).tolist() == [1, 4]
    assert np.flatnonzero(table.round_up(nothing, 2, score)).tolist() == [0, 1, 2, 4]
    assert table.round_up(nothing, 8).all()


def test_a_stride_is_the_width_that_goes_with_one_unit() -> None:
    slots = {
        ("dense", 0): np.array([0, 1, 2]),
        ("groups", 0): np.array([0, 1, 2, 0, 1, 2]),
        ("uneven", 0): np.array([0, 1, 1, 2, -1, 2, 0, 0, 0]),
        ("kept", 0): np.array([-1, -1]),
    }
    table = UnitTable(3, slots)
    strides = {name: table.stride(name, 0) for name, _ in slots}
    assert strides == {"dense": 1, "groups": 2, "uneven": 2, "kept": 0}
    assert table.stride("dense", 1) == 0
