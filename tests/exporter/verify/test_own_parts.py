"""What a bundle stores of its domains and their trunk is the checkpoint's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from prunion.exporter.bundle import export_bundle, graph_trunk_hash, packs_of
from prunion.exporter.options import ExportOptions
from prunion.exporter.verify import verify_bundle
from prunion.exporter.verify.own_parts import check_own_parts
from prunion.runtime.bundle import open_bundle, read_pack, write_pack
from prunion.trainer.network import load_checkpoint
from tests.exporter.verify.test_report import edit_tensor, rehash
from tests.support.networks.drawn import NAMES, drawn_checkpoint

SLICES = {"granularity": '"slice"'}


def flip(bundle: Path, file: str, part: str) -> str:
    """Flip the lowest bit of the middle byte of the first of these parts, hash and all."""
    with safe_open(bundle / file, "np") as opened:
        metadata = opened.metadata()
    tensors = load_file(bundle / file)
    key = min(key for key in tensors if key.startswith(part))
    value = tensors[key] = tensors[key].copy()
    raw = value.reshape(-1).view(np.uint8)
    raw[len(raw) // 2] ^= 1
    save_file(tensors, bundle / file, metadata)
    rehash(bundle)
    return key


def told(bundle: Path, checkpoint: Path) -> list[str]:
    return list(check_own_parts(open_bundle(bundle), checkpoint, load_checkpoint(checkpoint)))


def test_one_bit_of_a_mask_is_found(tmp_path: Path) -> None:
    """It may move no answer to noise by more than the tolerance."""
    checkpoint = drawn_checkpoint(tmp_path, "piggyback")
    loaded, packs = load_checkpoint(checkpoint), {x.name: x for x in packs_of(checkpoint, NAMES)}
    manifest = SimpleNamespace(heads="gathered", trunk_hash="")
    bundle: Any = SimpleNamespace(manifest=manifest, domains=tuple(NAMES), pack=packs.get)
    assert not list(check_own_parts(bundle, checkpoint, loaded))
    key, bits = min(packs["cold"].own.items())
    packs["cold"] = replace(packs["cold"], own={**packs["cold"].own, key: bits ^ 1})
    (problem,) = check_own_parts(bundle, checkpoint, loaded)
    assert problem.startswith(f"domain cold: {key} of its pack is not the checkpoint's")


@pytest.mark.parametrize("table", ["bank", "head_weight", "head_bias"])
def test_a_number_of_a_table_that_moves_no_answer_is_found(
    tiny: Path, copy: Path, table: str
) -> None:
    def nudge(value: np.ndarray) -> None:
        place = np.unravel_index(np.abs(np.where(np.isfinite(value), value, 0)).argmax(), row)
        value[place] *= 1 + 4e-6

    assert not told(copy, tiny)
    pack = read_pack(copy / "domains" / "cold.safetensors")
    row = getattr(pack, table).shape
    nudge(changed := getattr(pack, table).copy())
    write_pack(copy / "domains" / "cold.safetensors", replace(pack, **{table: changed}))
    for name in ("model.onnx", "model.fp16.onnx"):
        edit_tensor(copy / name, table, lambda whole: nudge(whole[1]))
    rehash(copy)
    assert not verify_bundle(copy).problems
    problem = f"domain cold: {table} of its pack is not the checkpoint's: export the bundle again"
    assert verify_bundle(copy, against=tiny).problems == (problem,)


def test_a_number_of_the_trunk_that_moves_no_answer_is_found(tiny: Path, copy: Path) -> None:
    def nudge(value: np.ndarray) -> None:
        value.reshape(-1)[0] *= 1 + 1e-6

    edit_tensor(copy / "model.onnx", "layer1.0.conv1.weight", nudge)
    rehash(copy)
    opened = open_bundle(copy)
    order = [[e.layer, e.kind, e.offset, e.size] for e in opened.manifest.bank]
    digest = graph_trunk_hash(onnx.load(copy / "model.onnx"), order)
    for name in opened.domains:
        path = copy / "domains" / f"{name}.safetensors"
        write_pack(path, replace(read_pack(path), trunk_hash=digest))
    rehash(copy, lambda manifest: manifest.update(trunk_hash=digest))
    assert not verify_bundle(copy).problems
    (problem,) = verify_bundle(copy, against=tiny).problems
    assert problem.startswith("the weights of its trunk are not the checkpoint's")


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("method", "train", "part"),
    [
        ("bap", SLICES, "slices_of:"),
        ("taps", {}, "added:"),
        ("affine", {}, "numbers:"),
        ("packnet", {}, "task:"),
        ("finetune", {}, "value:"),
        ("svd", {}, "centre_down:"),
        ("parallel", {}, "centre:"),
        ("parallel", {"adapter_rank": 2}, "centre_up:"),
        ("series", {"adapter_lr": 0.1}, "behind:"),
    ],
)
def test_so_is_one_of_every_method(
    tmp_path: Path, method: str, train: dict[str, object], part: str
) -> None:
    checkpoint, bundle = drawn_checkpoint(tmp_path, method, **train), tmp_path / "b.prunion"
    export_bundle(checkpoint, bundle)
    assert not told(bundle, checkpoint)
    key = flip(bundle, "domains/cold.safetensors", part)
    (problem,) = told(bundle, checkpoint)
    assert f"domain cold: {key} of its pack" in problem


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("method", "train", "file", "part"),
    [
        ("bap", SLICES, "domains/cold.safetensors", "slices_of:"),
        ("packnet", {}, "shared.safetensors", "turns:"),
        ("parallel", {}, "domains/cold.safetensors", "centre:"),
    ],
)
def test_a_bundle_of_some_of_the_domains_holds(
    tmp_path: Path, method: str, train: dict[str, object], file: str, part: str
) -> None:
    checkpoint, bundle = drawn_checkpoint(tmp_path, method, **train), tmp_path / "b.prunion"
    for options in (
        ExportOptions(specialise="cold", fp16=True),
        ExportOptions(domains=("cold",)),
        ExportOptions(domains=("cold", "warm"), uint8=True),
    ):
        export_bundle(checkpoint, bundle, options, force=True)
        assert verify_bundle(bundle, against=checkpoint).problems == ()
    key = flip(bundle, file, part)
    assert any(key in problem for problem in verify_bundle(bundle, against=checkpoint).problems)
