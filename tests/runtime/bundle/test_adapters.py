"""The table of adapters: rows from a pack's parts and back, and a manifest that lies about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prunion.runtime.base import Fields
from prunion.runtime.bundle import (
    AdapterEntry,
    Pack,
    adapter_parts,
    adapter_row,
    read_pack,
    write_pack,
    write_shared,
)
from prunion.runtime.bundle.adapters import read_adapters
from prunion.runtime.bundle.weight_parts import own_weights, read_shared
from prunion.runtime.errors import BundleError

ENTRIES = (
    AdapterEntry("a", "beside", 4, 3, 0, 0),
    AdapterEntry("b", "beside", 5, 4, 2, 12),
    AdapterEntry("c", "behind", 3, 3, 0, 30),
)


def test_a_row_is_all_parts_one_after_the_other() -> None:
    row = np.random.default_rng(0).standard_normal(39).astype(np.float32)
    parts = adapter_parts(ENTRIES, row)
    assert {key: value.shape for key, value in parts.items()} == {
        "centre:a": (4, 3),
        "centre_down:b": (2, 4),
        "centre_up:b": (5, 2),
        "behind:c": (3, 3),
    }
    assert np.array_equal(adapter_row(ENTRIES, parts), row)
    assert np.array_equal(row[:12].reshape(4, 3), parts["centre:a"])
    weights = {n: np.zeros((o, i, 3, 3), np.float32) for n, o, i in [("a", 4, 3), ("b", 5, 4)]}
    weights["c"] = np.ones((3, 2, 3, 3), np.float32)
    made = own_weights(parts, weights.__getitem__)
    np.testing.assert_allclose(made["a"][:, :, 1, 1], parts["centre:a"])
    product = parts["centre_up:b"] @ parts["centre_down:b"]
    np.testing.assert_allclose(made["b"][:, :, 1, 1], product, rtol=1e-6)
    np.testing.assert_allclose(made["c"][:, 0, 0, 0], 1 + parts["behind:c"].sum(1), rtol=1e-6)


def test_what_a_pack_lacks_is_nothing() -> None:
    assert not adapter_row(ENTRIES, {}).any()
    row = adapter_row(ENTRIES, {"behind:c": np.ones((3, 3), np.float32)})
    assert np.flatnonzero(row).tolist() == list(range(30, 39))


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"centre:d": (4, 3)}, "for which this bundle has no place"),
        ({"centre:b": (5, 4)}, "for which this bundle has no place"),
        ({"centre:a": (4, 2)}, r"is \[4, 2\], expected \[4, 3\]"),
        ({"centre_up:b": (5, 2)}, "'centre_up:b' alone"),
    ],
)
def test_parts_without_a_place_are_refused(own: dict[str, tuple[int, int]], said: str) -> None:
    with pytest.raises(BundleError, match=said):
        adapter_row(ENTRIES, {key: np.ones(shape, np.float32) for key, shape in own.items()})


def test_of_many_parts_without_a_place_the_first_by_name_is_told(tmp_path: Path) -> None:
    """The library that reads a pack keeps no order, and each call named another."""
    own = {f"up:w{number:02}": np.ones((2, 2), np.float32) for number in range(20)}
    nothing, switches = np.zeros(0, np.float32), np.zeros(0, np.uint8)
    head = np.zeros((3, 1), np.float32), np.zeros(1, np.float32)
    write_pack(tmp_path / "p", Pack("a", ("x",), nothing, *head, switches, "0" * 64, own))
    with pytest.raises(BundleError, match="the pack has 'up:w00', for which"):
        adapter_row(ENTRIES, read_pack(tmp_path / "p").own)
    write_shared(tmp_path / "s", own)
    assert list(read_shared((tmp_path / "s").read_bytes(), "s")) == sorted(own)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"offset": 1}, r"adapters\[0\].offset is 1 where 0 must follow"),
        ({"kind": "above"}, r"adapters\[0\].kind is 'above'"),
        ({"kind": "behind"}, r"adapters\[0\].kind is 'behind', which is a whole square"),
        ({"outputs": 0}, r"adapters\[0\].outputs"),
        ({"rank": -1}, r"adapters\[0\].rank"),
        ({"weight": 3}, r"adapters\[0\].weight"),
    ],
)
def test_a_manifest_that_lies(change: dict[str, Any], said: str) -> None:
    value = {"adapters": [{**ENTRIES[0].to_json(), **change}]}
    with pytest.raises(BundleError, match=said):
        read_adapters(Fields(value, "", "manifest.json"))
    again = {"adapters": [ENTRIES[0].to_json(), {**ENTRIES[0].to_json(), "offset": 12}]}
    with pytest.raises(BundleError, match="adapters lists 'centre:a' twice"):
        read_adapters(Fields(again, "", "manifest.json"))
    fine = {"adapters": [entry.to_json() for entry in ENTRIES]}
    assert read_adapters(Fields(fine, "", "manifest.json")) == ENTRIES
    assert read_adapters(Fields({}, "", "manifest.json")) == ()


def test_a_table_that_would_fill_memory_is_refused() -> None:
    def listed(*sides: int) -> Fields:
        offset, found = 0, []
        for index, side in enumerate(sides):
            entry = AdapterEntry(str(index), "beside", side, side, 0, offset)
            found.append(entry.to_json())
            offset += entry.size
        return Fields({"adapters": found}, "", "manifest.json")

    assert len(read_adapters(listed(1 << 14))) == 1
    for sides in ((1 << 20,), (1 << 14, 1)):
        with pytest.raises(BundleError, match="numbers of each domain"):
            read_adapters(listed(*sides))
