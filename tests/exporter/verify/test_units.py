"""`prunion verify` finds a unit table that is wrong, also where every domain uses every channel."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prunion.exporter.verify import verify_bundle
from prunion.exporter.verify.units import check_units
from prunion.runtime.bundle import open_bundle
from prunion.runtime.model import pool
from tests.exporter.verify.test_report import rehash


def slots_of(bundle: Path) -> Iterator[tuple[Any, list[int]]]:
    """The unit table, and the units of each slot, which may be changed in it."""
    table = json.loads((bundle / "units.json").read_text())
    for slot in table["slots"]:
        if max(slot["units"]) >= 0:  # a channel of the image is in no unit
            yield table, slot["units"]


def test_units_that_are_swapped_in_one_tensor_are_found(copy: Path) -> None:
    assert list(check_units(open_bundle(copy))) == []
    for table, units in slots_of(copy):
        units[0], units[1] = units[1], units[0]
        (copy / "units.json").write_text(json.dumps(table))
        rehash(copy)
        (said,) = check_units(open_bundle(copy))
        assert said.startswith("the unit table joins ")
        units[0], units[1] = units[1], units[0]


def test_a_wrong_table_does_not_hold(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "default_round_to", pytest.fail)
    table, units = next(slots_of(copy))
    units[2] = -1
    (copy / "units.json").write_text(json.dumps(table))
    rehash(copy)
    first, second = verify_bundle(copy).notes
    assert first.startswith("fp32: its domains are answered in the union's width: node ")
    assert first.endswith("cannot be sliced: its weight's channels are not those it is given")
    assert second.startswith("fp16: ")
    table["slots"] = [x for x in table["slots"] if x["tensor"] != "bank"]
    (copy / "units.json").write_text(json.dumps(table))
    rehash(copy)
    assert any("lists no columns of the bank" in x for x in verify_bundle(copy).problems)
