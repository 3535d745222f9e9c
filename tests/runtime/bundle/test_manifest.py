"""One schema of `manifest.json`: what is read is what would be written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prunion.runtime.bundle import Manifest, load_manifest
from prunion.runtime.errors import BundleError

FULL: dict[str, Any] = {
    "format_version": 1,
    "name": "full",
    "domains": [
        {"name": "a", "classes": ["x", "y"], "pack": "a.safetensors", "accuracy": 0.5},
        {"name": "b", "classes": ["z"], "pack": "b.safetensors"},
    ],
    "input": {
        "height": 8,
        "width": 12,
        "channels": 3,
        "dtype": "float32",
        "normalisation": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
        "resize": {"shorter_side": 9, "interpolation": "bilinear", "crop": "center"},
    },
    "budget": {
        "kind": "latency",
        "asked": "2ms",
        "value": 1.9,
        "backbone": 4.0,
        "met": True,
        "milliseconds": 1.9,
        "share": 0.475,
        "device": "a device",
    },
    "params": {"backbone": 432, "exported": 216, "heads": 90, "bank": 48},
    "macs": {"backbone": 51840, "exported": 25920},
    "widths": {"conv": [16, 8]},
    "rounding": {"multiple": 8, "added": {"conv": 1}},
    "paper": {
        "bits": {"backbone": 100, "exported": 50},
        "params": 0.5,
        "macs": {"backbone": 10, "exported": 9, "domains": {"a": 8, "b": 7}},
        "flop": 0.75,
        "flop_union": 0.9,
        "method": "bap",
    },
    "heads": "concatenated",
    "units": "units.json",
    "bank": [{"layer": "bn", "kind": "scale", "offset": 0, "size": 8}],
    "trunk_hash": "ab" * 32,
    "files": dict.fromkeys(
        ["a.safetensors", "b.safetensors", "model.onnx", "model.int8.onnx", "units.json"], "0" * 64
    ),
    "graphs": {"fp32": "model.onnx", "int8": "model.int8.onnx"},
    "verified": {
        "max_relative_error": 1e-6,
        "tolerance": 1e-4,
        "variants": {
            "fp32-uint8": {"max_relative_error": {"a": 1e-7}, "tolerance": 1e-4},
            "fp16": {
                "max_relative_error": {"a": 1e-3},
                "tolerance": 3e-2,
                "float32_layers": {"conv1": 1e5},
            },
            "int8": {
                "max_relative_error": {"a": 0.1, "b": 0.2},
                "tolerance": 0.5,
                "accuracy": {"a": [0.5, 0.4], "b": [1.0, 1]},
                "test_images": {"a": 10, "b": 20},
                "max_drop": 10,
                "calibration_images": 64,
                "outputs": "int8",
            },
        },
    },
    "provenance": {
        "prunion": "0.1.0",
        "versions": {"torch": "2"},
        "trained_with": {"torch": "2"},
        "seed": 0,
        "created": "2026-01-01T00:00:00+00:00",
        "config": {"seed": 0},
    },
}


def text(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=1)  # keys in their order


def test_what_is_read_is_written_again_byte_for_byte() -> None:
    assert text(Manifest.from_json(FULL, "x").to_json()) == text(FULL)


def test_a_bundle_that_says_nothing_of_orientation_turns_no_image() -> None:
    assert Manifest.from_json(FULL, "x").input.orientation == "ignore"
    turned = {**FULL, "input": {**FULL["input"], "orientation": "exif"}}
    again = Manifest.from_json(turned, "x")
    assert again.input.orientation == "exif"
    assert text(again.to_json()) == text(turned)


@pytest.mark.parametrize("part", ["rounding", "paper", "verified", "provenance"])
def test_a_part_that_is_not_told_is_not_made_up(part: str) -> None:
    less = {key: value for key, value in FULL.items() if key != part}
    manifest = Manifest.from_json(less, "x")
    assert getattr(manifest, part) is None
    assert text(manifest.to_json()) == text(less)
    assert manifest.round_to == (1 if part == "rounding" else 8)


def test_an_older_bundles_flop_was_the_unions() -> None:
    """The papers' column is the mean over domains: 8 and 7 of 10."""
    older = {k: v for k, v in FULL["paper"].items() if k != "flop_union"}
    again = Manifest.from_json({**FULL, "paper": {**older, "flop": 0.9}}, "x")
    assert text(again.to_json()) == text(FULL)


def test_an_older_bundle_is_read_too(bundle_path: Path) -> None:
    path = bundle_path / "manifest.json"
    told = json.loads(path.read_text("utf-8"))
    again = load_manifest(path).to_json()
    assert {**told, "heads": "gathered"} == {
        **again, "verified": {k: v for k, v in again["verified"].items() if k != "variants"}
    }  # fmt: skip


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("verified", "tolerance"), float("inf"), "verified.tolerance must be a finite number"),
        (("verified", "variants", "int8", "tolerance"), float("nan"), "int8.tolerance must be a f"),
        (("verified", "variants", "int8", "max_drop"), 1e30, "max_drop is 1e.30, outside 0..100"),
        (("verified", "variants", "int8", "accuracy", "a"), [0.5], "accuracy.a must be"),
        (("verified", "variants", "int8", "accuracy", "a"), [2, 0.5], "accuracy.a must be"),
        (("domains", 0, "classes"), ["x", "y", "x"], r"domains\[0\].classes names 'x' twice"),
        (("input", "normalisation", "mean"), [0, 0, 1e38], "mean must be three numbers from 0 to"),
        (("input", "normalisation", "std"), [1e-37, 1, 1], "std must be three numbers from 1e-18"),
        (("input", "normalisation", "std"), [1, 1, 1e300], "std must be three numbers from 1e-18"),
        (("rounding", "multiple"), 0, "rounding.multiple is 0, outside 1"),
        (("paper", "flop"), "much", "paper.flop must be a finite number"),
        (("paper", "bits", "backbone"), 0.5, "paper.bits.backbone must be an integer"),
        (("provenance", "config"), [], "provenance.config must be an object"),
    ],
)
def test_every_part_is_checked(place: tuple[str | int, ...], value: Any, said: str) -> None:
    changed = json.loads(json.dumps(FULL))
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    with pytest.raises(BundleError, match=said):
        Manifest.from_json(changed, "x")
