"""Packs and unit tables from elsewhere, and what they are to a loaded model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from prunion.runtime.base import sha256_file
from prunion.runtime.bundle import UnitTable, read_pack
from prunion.runtime.errors import BundleError, PrunionError
from prunion.runtime.model import load


def with_header(file: Path, change: dict[str, Any]) -> Path:
    """The pack with its first tensor's entry changed, in a file that is sound otherwise."""
    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header["bank"] |= change
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[start:])
    return file


def rehash(bundle: Path, name: str) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
    manifest["files"][name] = sha256_file(bundle / name)
    (bundle / "manifest.json").write_text(json.dumps(manifest), "utf-8")


@pytest.mark.parametrize(
    "kind", ["F8_E4M3", "F8_E5M2", "BF16", "F16", "F64", "I64", "F4", "X\x1b[2J"]
)
def test_a_type_that_no_pack_has(own_bundle: Path, kind: str) -> None:
    file = with_header(own_bundle / "domains" / "flowers.safetensors", {"dtype": kind})
    with pytest.raises(BundleError) as told:
        read_pack(file)
    assert str(told.value).isprintable()
    assert str(file) in str(told.value)


def test_what_no_pack_has_is_not_passed_over(own_bundle: Path) -> None:
    file = own_bundle / "domains" / "flowers.safetensors"
    with safe_open(file, "np") as opened:
        tensors, metadata = load_file(file), opened.metadata()
    for more, said in (({"own\x1b": tensors["bank"]}, {}), ({}, {"note\x1b": "x"})):
        save_file({**tensors, **more}, file, {**metadata, **said})
        with pytest.raises(BundleError, match="which no pack has: export it again") as told:
            read_pack(file)
        assert str(told.value).isprintable()


def test_a_key_twice_in_a_packs_header(own_bundle: Path) -> None:
    file = own_bundle / "domains" / "flowers.safetensors"
    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    text = data[8:start].replace(b'"name":', b'"name":"signs","name":', 1)
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[start:])
    with pytest.raises(BundleError, match=r"flowers\.safetensors is no readable pack"):
        read_pack(file)


def test_a_class_name_twice_is_refused(own_bundle: Path) -> None:
    """Labels are looked up by name: images of the first of the two counted as wrong."""
    file = own_bundle / "domains" / "digits.safetensors"
    with safe_open(file, "np") as opened:
        tensors, metadata = load_file(file), opened.metadata()
    save_file(tensors, file, {**metadata, "classes": '["zero", "zero"]'})
    with pytest.raises(BundleError, match=r"digits\.safetensors has two classes named 'zero'"):
        read_pack(file)


UNITS = [0, 1]
TABLE: dict[str, Any] = {
    "format_version": 1,
    "count": 2,
    "slots": [{"tensor": "w", "axis": 0, "units": UNITS}],
    "layers": [{"weight": "w", "shape": [2, 3, 1, 1], "positions": 4}],
}


@pytest.mark.parametrize(
    "change",
    [
        {"count": 2**31},
        {"count": 3},
        {"count": 1},
        {"count": True},
        {"count": "2"},
        {"slots": [{"tensor": "w", "axis": 0, "units": [0.5, 1]}]},
        {"slots": [{"tensor": "w", "axis": 0, "units": [0, 2**70]}]},
        {"slots": [{"tensor": "w", "axis": 10**400, "units": UNITS}]},
        {"slots": [{"tensor": "w\x1b", "axis": 0, "units": UNITS}]},
        {"slots": {"w": UNITS}},
        {"slots": [TABLE["slots"][0], {**TABLE["slots"][0], "units": [1, 0]}]},
        {"layers": [{"weight": "w", "shape": "23", "positions": 4}]},
        {"layers": [{"weight": "w", "shape": [2.5], "positions": 4}]},
        {"layers": [{"weight": "w", "shape": [2], "positions": -1}]},
        {"format_version": 1.5},
    ],
)
def test_a_unit_table_that_is_none(change: dict[str, Any]) -> None:
    assert UnitTable.from_json(TABLE).count == 2
    with pytest.raises(PrunionError) as told:
        UnitTable.from_json({**TABLE, **change})
    assert str(told.value).isprintable()


def test_packs_of_a_bundle_must_fit_its_units(own_bundle: Path) -> None:
    value = json.loads((own_bundle / "units.json").read_text("utf-8"))
    value["count"] += 1
    value["slots"][0]["units"][0] = value["count"] - 1
    (own_bundle / "units.json").write_text(json.dumps(value), "utf-8")
    rehash(own_bundle, "units.json")
    with pytest.raises(BundleError, match="8 switches, expected 9"):
        load(own_bundle, "cpu")
