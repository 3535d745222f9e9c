"""Bundles: what is read, and every way a damaged one is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from prunion.runtime.base import sha256_file
from prunion.runtime.bundle import Pack, check_pack, open_bundle, read_pack, write_pack
from prunion.runtime.errors import BundleError, DomainError


def edit_manifest(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = bundle / "manifest.json"
    value = json.loads(path.read_text("utf-8"))
    change(value)
    path.write_text(json.dumps(value), "utf-8")


def test_manifest_is_read(bundle_path: Path, toy: ModuleType) -> None:
    bundle = open_bundle(bundle_path)
    assert bundle.domains == tuple(toy.CLASSES)
    assert bundle.manifest.domains[1].classes == toy.CLASSES["signs"]
    assert (bundle.manifest.bank_columns, bundle.manifest.max_classes) == (2 * toy.WIDTH, 5)
    assert bundle.graph() == bundle_path / "model.onnx"


def test_unit_table_counts_the_trunk(bundle_path: Path, toy: ModuleType) -> None:
    table = open_bundle(bundle_path).unit_table()
    alive = np.ones(toy.WIDTH, bool)
    assert table.params(alive) == 216
    alive[:2] = False
    assert table.params(alive) == 162
    assert table.kept("bank", 1, 16, alive).tolist() == [*range(2, 8), *range(10, 16)]


@pytest.mark.parametrize("file", ["model.onnx", "units.json", "domains/signs.safetensors"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damaged_file_is_named(own_bundle: Path, file: str, damage: str) -> None:
    path = own_bundle / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(data if damage == "flip" else data[:-1])
    with pytest.raises(BundleError, match=f"{Path(file).name}.*export again or copy"):
        open_bundle(own_bundle)


def _file(path: str) -> Callable[[dict[str, Any]], object]:
    return lambda m: m["files"].__setitem__(path, "0" * 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format_version=4), "format_version is 4, this prunion reads 1 to 3"),
        (lambda m: m.update(format_version=True), "format_version is True"),
        (lambda m: m.update(format_version=1.0), r"format_version is 1\.0"),
        (lambda m: m.pop("domains"), "domains is missing"),
        (lambda m: m.update(domains=[]), "domains is empty"),
        (lambda m: m.update(domains=m["domains"][:1] * 2), "names 'flowers' twice"),
        (lambda m: m["domains"][0].update(classes=[]), r"domains\[0\].classes is empty"),
        (lambda m: m["domains"][0].update(classes=[1]), "classes must be a non-empty string"),
        (lambda m: m["domains"][0].update(name="a\x1b[2J"), "name holds control characters"),
        (lambda m: m["domains"][0].update(accuracy=91), "accuracy must be a number in 0..1"),
        (lambda m: m["domains"][0].update(pack="x"), "pack is 'x', which `files` does not list"),
        (lambda m: m["input"].update(height=5000), "input.height is 5000, outside 1..4096"),
        (lambda m: m["input"].update(height=True), "input.height must be an integer"),
        (lambda m: m["input"].update(dtype="uint8"), "input.dtype is 'uint8'"),
        (lambda m: m["input"].update(orientation="up"), "input.orientation is 'up'"),
        (lambda m: m["input"]["normalisation"].update(std=[1, 0, 1]), "std must be three numbers"),
        (lambda m: m["input"]["normalisation"].update(mean=[1, 2]), "mean must be three"),
        (lambda m: m["budget"].update(met=1), "budget.met must be true or false"),
        (lambda m: m["bank"][1].update(offset=9), r"bank\[1\].offset is 9 where 8 must follow"),
        (lambda m: m.update(trunk_hash="xyz"), "trunk_hash must be a SHA-256"),
        (lambda m: m["graphs"].update(fp16="../x.onnx"), "graphs.fp16"),
        (lambda m: m["widths"].update(conv=[1]), r"widths.conv must be \[width before"),
        (_file("../secret"), "not a plain path inside the bundle"),
        (_file("domains/../../secret"), "not a plain path inside the bundle"),
        (_file("/etc/hostname"), "not a plain path inside the bundle"),
        (_file("c:\\windows"), "not a plain path inside the bundle"),
        (_file("domains//x"), "not a plain path inside the bundle"),
    ],
)
def test_bad_manifest_names_the_key(
    own_bundle: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    edit_manifest(own_bundle, change)
    with pytest.raises(BundleError, match=message):
        open_bundle(own_bundle)


def test_symlink_out_of_the_bundle_is_refused(own_bundle: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.onnx"
    (own_bundle / "model.onnx").rename(outside)
    (own_bundle / "model.onnx").symlink_to(outside)
    with pytest.raises(BundleError, match="no plain file inside the bundle"):
        open_bundle(own_bundle)


def test_places_that_are_no_bundle(own_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not exist"):
        open_bundle(tmp_path / "nowhere")
    with pytest.raises(BundleError, match="give the bundle's folder"):
        open_bundle(own_bundle / "manifest.json")
    (own_bundle / "manifest.json").write_text("{", "utf-8")
    with pytest.raises(BundleError, match="cannot be read as JSON"):
        open_bundle(own_bundle)
    (own_bundle / "manifest.json").unlink()
    with pytest.raises(BundleError, match=r"holds no manifest\.json"):
        open_bundle(own_bundle)


def test_unknown_precision_and_domain(bundle_path: Path) -> None:
    bundle = open_bundle(bundle_path)
    with pytest.raises(BundleError, match="no fp16 graph, only fp32"):
        bundle.graph("fp16")
    with pytest.raises(DomainError, match="it has flowers, signs, digits"):
        bundle.pack("cars")


def test_pack_goes_there_and_back(bundle_path: Path, toy: ModuleType, tmp_path: Path) -> None:
    pack = open_bundle(bundle_path).pack("signs")
    tables = toy.make_tables()
    np.testing.assert_array_equal(pack.bank, tables.bank[1])
    np.testing.assert_array_equal(pack.head_weight, tables.head_weight[1, :, :5])
    write_pack(tmp_path / "again.safetensors", pack)
    again = read_pack(tmp_path / "again.safetensors")
    assert (again.name, again.classes) == ("signs", toy.CLASSES["signs"])
    np.testing.assert_array_equal(again.switches, pack.switches)


def test_a_pack_is_written_with_the_same_bytes_each_time(tmp_path: Path) -> None:
    """safetensors alone would put the metadata in another order each time."""
    path, written = tmp_path / "cars.safetensors", set()
    for _ in range(8):
        write_pack(path, make_pack(classes=("Äpfel", 'a "b"')))
        written.add(path.read_bytes())
    assert len(written) == 1
    assert read_pack(path).classes == ("Äpfel", 'a "b"')


def make_pack(**change: Any) -> Pack:
    values: dict[str, Any] = {
        "name": "cars",
        "classes": ("a", "b"),
        "bank": np.ones(16, np.float32),
        "head_weight": np.ones((8, 2), np.float32),
        "head_bias": np.ones(2, np.float32),
        "switches": np.ones(8, np.uint8),
        "trunk_hash": "ab" * 32,
    }
    return Pack(**(values | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bank": np.full(16, np.nan, np.float32)}, "bank holds NaN"),
        ({"bank": np.ones(16)}, "bank is float64 of rank 1, expected float32"),
        ({"head_bias": np.ones(3, np.float32)}, "for 2 classes"),
        ({"classes": ()}, "for 0 classes"),
        ({"switches": np.full(8, 2, np.uint8)}, "switches must be 0 or 1"),
    ],
)
def test_bad_pack_is_not_written(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=message):
        write_pack(tmp_path / "cars.safetensors", make_pack(**change))
    assert not list(tmp_path.iterdir())


def test_pack_of_another_trunk_is_refused() -> None:
    pack = make_pack()
    check_pack(pack, trunk_hash="ab" * 32, columns=16, features=8)
    with pytest.raises(BundleError, match="was made for trunk abab"):
        check_pack(pack, trunk_hash="cd" * 32, columns=16)
    with pytest.raises(BundleError, match=r"bank is \[16\], expected \[20\]"):
        check_pack(pack, trunk_hash="ab" * 32, columns=20)
    with pytest.raises(BundleError, match="takes 8 features, expected 4"):
        check_pack(pack, trunk_hash="ab" * 32, columns=16, features=4)


def test_pack_for_other_images_is_refused(bundle_path: Path, tmp_path: Path) -> None:
    """Two runs may share a frozen trunk, and see images of other sizes or another orientation."""
    images = open_bundle(bundle_path).manifest.input
    how: dict[str, Any] = {"trunk_hash": "ab" * 32, "columns": 16, "images": images}
    check_pack(make_pack(), **how)  # an earlier prunion's does not say
    path = tmp_path / "cars.safetensors"
    write_pack(path, make_pack(images=images.to_json()))
    check_pack(read_pack(path), **how)
    for change in ({"width": 99}, {"normalisation": {"mean": [0.5] * 3, "std": [0.5] * 3}}):
        write_pack(path, make_pack(images={**images.to_json(), **change}))
        with pytest.raises(BundleError, match=f"made for images whose {next(iter(change))} is"):
            check_pack(read_pack(path), **how)
    write_pack(path, make_pack(images={**images.to_json(), "orientation": "exif"}))
    with pytest.raises(BundleError, match="whose orientation is 'exif', this bundle's is None"):
        check_pack(read_pack(path), **how)


def test_pack_that_is_no_pack(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / "x.safetensors"
    with pytest.raises(BundleError, match="does not exist"):
        read_pack(path)
    path.write_bytes(b"\xff" * 40)
    with pytest.raises(BundleError, match="no readable pack"):
        read_pack(path)
    save_file({"bank": np.ones(3, np.float32)}, path)
    with pytest.raises(BundleError, match="lacks head_bias, head_weight, switches"):
        read_pack(path)


def test_pack_disagreeing_with_the_manifest(own_bundle: Path) -> None:
    path = own_bundle / "domains" / "signs.safetensors"
    pack = read_pack(path)
    write_pack(path, make_pack(name="signs", classes=("a", "b"), trunk_hash=pack.trunk_hash))
    digest = sha256_file(path)
    edit_manifest(own_bundle, lambda m: m["files"].update({"domains/signs.safetensors": digest}))
    with pytest.raises(BundleError, match="disagree on the classes"):
        open_bundle(own_bundle).pack("signs")
