"""A small real bundle: one convolution, per-domain scale and shift, gathered heads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from prunion.runtime.base import sha256_file, write_json
from prunion.runtime.bundle import Layer, Pack, UnitTable, write_pack, write_shared

CLASSES = {
    "flowers": ("daisy", "rose", "tulip"),
    "signs": ("stop", "yield", "give way", "no entry", "parking"),
    "digits": ("zero", "one"),
}
WIDTH = 8
HEIGHT, SIDE_WIDTH = 12, 10
TRUNK_HASH = "ab" * 32


@dataclass(frozen=True)
class Tables:
    """The numbers of the toy network."""

    weight: np.ndarray
    bank: np.ndarray
    head_weight: np.ndarray
    head_bias: np.ndarray


def make_tables(seed: int = 0) -> Tables:
    """Random parameters; the heads are padded to the most classes."""
    rng = np.random.default_rng(seed)
    count, most = len(CLASSES), max(len(x) for x in CLASSES.values())
    head_weight = np.zeros((count, WIDTH, most), np.float32)
    head_bias = np.full((count, most), -np.inf, np.float32)
    for row, classes in enumerate(CLASSES.values()):
        head_weight[row, :, : len(classes)] = rng.normal(size=(WIDTH, len(classes)))
        head_bias[row, : len(classes)] = rng.normal(size=len(classes))
    weight = rng.normal(size=(WIDTH, 3, 3, 3)).astype(np.float32)
    bank = rng.normal(size=(count, 2 * WIDTH)).astype(np.float32)
    bank[0, :2] = bank[0, WIDTH : WIDTH + 2] = 0  # two channels that flowers does not use
    return Tables(weight, bank, head_weight, head_bias)


def reference(tables: Tables, image: np.ndarray, domain: np.ndarray) -> np.ndarray:
    """The network in plain numpy, one image at a time: `[N, 3, H, W]`, `[N]` → `[N, Cmax]`."""
    rows = []
    for picture, d in zip(image, domain, strict=True):
        padded = np.pad(picture.astype(np.float64), ((0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
        maps = np.einsum("chwij,ocij->ohw", windows, tables.weight.astype(np.float64))
        scale, shift = np.split(tables.bank[d].astype(np.float64), 2)
        active = np.maximum(maps * scale[:, None, None] + shift[:, None, None], 0)
        features = active.mean(axis=(1, 2))
        rows.append(features @ tables.head_weight[d] + tables.head_bias[d])
    return np.stack(rows)


def make_graph(tables: Tables) -> onnx.ModelProto:
    """The graph as `docs/formats.md` describes it."""
    node, ints = helper.make_node, lambda name, *v: numpy_helper.from_array(np.array(v), name)
    nodes = [
        node("Gather", ["bank", "domain"], ["row"], axis=0),
        node("Split", ["row", "sizes"], ["scale2", "shift2"], axis=1),
        node("Unsqueeze", ["scale2", "plane"], ["scale"]),
        node("Unsqueeze", ["shift2", "plane"], ["shift"]),
        node("Conv", ["image", "conv.weight"], ["conv"], pads=[1, 1, 1, 1]),
        node("Mul", ["conv", "scale"], ["scaled"]),
        node("Add", ["scaled", "shift"], ["normed"]),
        node("Relu", ["normed"], ["active"]),
        node("GlobalAveragePool", ["active"], ["pooled"]),
        node("Squeeze", ["pooled", "plane"], ["features"]),
        node("Unsqueeze", ["features", "one"], ["rowed"]),
        node("Gather", ["head_weight", "domain"], ["w"], axis=0),
        node("Gather", ["head_bias", "domain"], ["b"], axis=0),
        node("MatMul", ["rowed", "w"], ["scores3"]),
        node("Squeeze", ["scores3", "one"], ["scores"]),
        node("Add", ["scores", "b"], ["logits"]),
    ]
    value = helper.make_tensor_value_info
    shapes: dict[str, list[Any]] = {
        "image": ["N", 3, HEIGHT, SIDE_WIDTH],
        "bank": ["D", 2 * WIDTH],
        "head_weight": ["D", WIDTH, "Cmax"],
        "head_bias": ["D", "Cmax"],
    }
    inputs = [value(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    inputs.insert(1, value("domain", TensorProto.INT64, ["N"]))
    tensors = {"conv.weight": tables.weight, "bank": tables.bank}
    tensors |= {"head_weight": tables.head_weight, "head_bias": tables.head_bias}
    initializers = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    initializers += [ints("sizes", WIDTH, WIDTH), ints("plane", 2, 3), ints("one", 1)]
    output = value("logits", TensorProto.FLOAT, ["N", "Cmax"])
    graph = helper.make_graph(nodes, "toy", inputs, [output], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    model = onnx.shape_inference.infer_shapes(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def make_bundle(
    folder: Path,
    tables: Tables | None = None,
    own: dict[str, dict[str, np.ndarray]] | None = None,
    shared: dict[str, np.ndarray] | None = None,
) -> Path:
    """Write `toy.prunion` in `folder` and return its path.

    With `own`, parts of own weights by domain, and `shared`, it is of the format's version 2.
    """
    tables = tables or make_tables()
    path = folder / "toy.prunion"
    path.mkdir(parents=True)
    onnx.save(make_graph(tables), path / "model.onnx")
    write_json(path / "units.json", _units().to_json())
    for row, (name, classes) in enumerate(CLASSES.items()):
        pack = replace(_pack(tables, row, name, classes), own=(own or {}).get(name, {}))
        write_pack(path / "domains" / f"{name}.safetensors", pack)
    if own is not None:
        write_shared(path / "shared.safetensors", shared or {})
    files = sorted(p for p in path.rglob("*") if p.is_file())
    hashes = {p.relative_to(path).as_posix(): sha256_file(p) for p in files}
    manifest = _manifest(hashes)
    if own is not None:
        manifest |= {"format_version": 2, "own_weights": "shared.safetensors"}
    write_json(path / "manifest.json", manifest)
    return path


def _pack(tables: Tables, row: int, name: str, classes: tuple[str, ...]) -> Pack:
    own = slice(0, len(classes))
    switches = (tables.bank[row, :WIDTH] != 0).astype(np.uint8)
    head = tables.head_weight[row, :, own], tables.head_bias[row, own]
    return Pack(name, classes, tables.bank[row], *head, switches, TRUNK_HASH)


def _units() -> UnitTable:
    units = np.arange(WIDTH)
    slots = {
        ("conv.weight", 0): units,
        ("bank", 1): np.concatenate([units, units]),
        ("head_weight", 1): units,
    }
    layer = Layer("conv.weight", (WIDTH, 3, 3, 3), HEIGHT * SIDE_WIDTH)
    return UnitTable(WIDTH, slots, (layer,))


def _manifest(hashes: dict[str, str]) -> dict[str, Any]:
    return {
        "format_version": 1,
        "name": "toy",
        "domains": [
            {
                "name": name,
                "classes": list(classes),
                "accuracy": 0.5,
                "pack": f"domains/{name}.safetensors",
            }
            for name, classes in CLASSES.items()
        ],
        "input": {
            "height": HEIGHT,
            "width": SIDE_WIDTH,
            "channels": 3,
            "dtype": "float32",
            "normalisation": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
            "resize": {"shorter_side": 14, "interpolation": "bilinear", "crop": "center"},
        },
        "budget": {"kind": "params", "asked": 0.5, "value": 0.5, "met": True},
        "params": {"backbone": 432, "exported": 216, "heads": 90, "bank": 48},
        "macs": {"backbone": 51840, "exported": 25920},
        "widths": {"conv": [16, WIDTH]},
        "units": "units.json",
        "bank": [
            {"layer": "bn", "kind": "scale", "offset": 0, "size": WIDTH},
            {"layer": "bn", "kind": "shift", "offset": WIDTH, "size": WIDTH},
        ],
        "trunk_hash": TRUNK_HASH,
        "files": hashes,
        "graphs": {"fp32": "model.onnx"},
        "verified": {"max_relative_error": 1e-6, "tolerance": 1e-4},
        "provenance": {
            "prunion": "0.1.0",
            "versions": {},
            "seed": 0,
            "created": "2026-01-01T00:00:00Z",
            "config": {},
        },
    }
