"""Every value of a manifest is held against something, or the page says that it is not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prunion.exporter.verify import report, verify_bundle
from prunion.exporter.verify.claims import check_told
from prunion.exporter.verify.findings import Findings
from prunion.runtime.base import sha256_file, write_json
from prunion.runtime.bundle import open_bundle, read_pack, write_pack
from prunion.runtime.errors import PrunionError
from prunion.trainer.network import Checkpoint, load_checkpoint
from tests.exporter.verify.test_report import rehash

Place = tuple[str | int, ...]
# What nothing else tells, as docs/export.md lists it too: the beginnings of places.
NOTED = "verified.variants.*.max_relative_error"
UNCHECKED = ("name", "paper", "provenance", "verified.max_relative_error", NOTED)
CHECKED_WITHIN = ("provenance.model_sha256", "provenance.seed")
# Keys of these are names, of which the first stands for all.
NAMED = {
    *("widths", "files", "graphs", "rounding.added", "verified.variants", "provenance.config"),
    *("provenance.versions", "provenance.trained_with", "paper.macs.domains"),
}
OTHERS = {
    "input.orientation": "ignore",
    "input.dtype": "uint8",
    "heads": "concatenated",
    "budget.kind": "macs",
    "graphs.*": "model.fp16.onnx",
    "units": "model.onnx",
}


def leaves(value: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Every value that holds no others, with its place."""
    inside: Any = ()
    if isinstance(value, dict):
        inside = value.items()
    elif isinstance(value, list):
        inside = enumerate(value)
    if not inside:
        yield place, value
    for key, item in inside:
        yield from leaves(item, (*place, key))


def kind_of(place: Place) -> str:
    """The place with `*` for what is one of many."""
    names: list[str] = []
    for key in place:
        named = ".".join(names) in NAMED or "max_relative_error" in names
        names.append("*" if named or isinstance(key, int) else str(key))
    return ".".join(names)


def changed(kind: str, value: Any) -> Any:
    """Another value of the same type."""
    if kind in OTHERS:
        return OTHERS[kind]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value / 2 + 0.0625
    if isinstance(value, str):
        return "0" * 64 if len(value) == 64 else f"{value}x"
    return {"conv1": 5} if isinstance(value, dict) else [1]


def put(tables: Any, place: Place, value: Any) -> None:
    *outer, last = place
    for key in outer:
        tables = tables[key]
    tables[last] = value


def damaged(good: Path, folder: Path, place: Place, value: Any) -> Path:
    """A copy whose manifest says otherwise in one place."""
    manifest = json.loads((good / "manifest.json").read_text())
    put(manifest, place, value)
    return written(good, folder, manifest, hashes=place[0] != "files")


def written(good: Path, folder: Path, manifest: Any, *, hashes: bool = True) -> Path:
    """A copy with this manifest, whose packs say the same of images and classes.

    Args:
        hashes: whether the manifest's are made to fit.
    """
    bundle = Path(shutil.copytree(good, folder))
    was = json.loads((bundle / "manifest.json").read_text())
    for before, domain in zip(was["domains"], manifest["domains"], strict=True):
        file = bundle / before["pack"]
        told = {"name": domain["name"], "classes": tuple(domain["classes"])}
        write_pack(file, replace(read_pack(file), **told, images=manifest["input"]))
    if hashes:
        manifest["files"] = {name: sha256_file(bundle / name) for name in manifest["files"]}
    write_json(bundle / "manifest.json", manifest)
    return bundle


def found(bundle: Path, loaded: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the bundle is refused; graphs run only where reading finds nothing: they are slow."""
    try:
        with monkeypatch.context() as patch:
            patch.setattr(report, "load_checkpoint", lambda _: loaded)
            patch.setattr(report, "compare_graphs", lambda *_: Findings())
            patch.setattr(report, "compare_cut", lambda *_: Findings())
            if verify_bundle(bundle, against=bundle).problems:
                return True
        with monkeypatch.context() as patch:
            patch.setattr(report, "load_checkpoint", lambda _: loaded)
            return bool(verify_bundle(bundle, against=bundle).problems)
    except PrunionError:  # such as that of a pack which is of another trunk
        return True


def test_every_value_is_held_against_something_or_listed(
    good: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_checkpoint(tiny)
    first: dict[str, tuple[Place, Any]] = {}
    for place, value in leaves(json.loads((good / "manifest.json").read_text())):
        first.setdefault(kind_of(place), (place, value))
    missed = []
    for number, (kind, (place, value)) in enumerate(first.items()):
        if kind.startswith(UNCHECKED) and kind not in CHECKED_WITHIN:
            continue
        bundle = damaged(good, tmp_path / str(number), place, changed(kind, value))
        if not found(bundle, loaded, monkeypatch):
            missed.append(kind)
    assert missed == []
    assert len(first) > 60, "all of them were looked at"


def test_what_every_export_says_is_missed(eight: Path, tmp_path: Path) -> None:
    manifest = json.loads((eight / "manifest.json").read_text())
    assert list(check_told(open_bundle(eight))) == []
    places: list[Place] = [
        ("budget", "backbone"), ("params", "heads"), ("params", "bank"), ("rounding",), ("paper",),
        ("verified",), ("provenance",), ("provenance", "model_sha256"),
        ("domains", 0, "accuracy_views"), ("verified", "variants", "fp16"),
        ("verified", "variants", "int8", "accuracy"),
        ("verified", "variants", "fp16", "max_relative_error", "warm"),
    ]  # fmt: skip
    for number, (*outer, last) in enumerate(places):
        less = deepcopy(manifest)
        table: Any = less
        for key in outer:
            table = table[key]
        del table[last]
        bundle = written(eight, tmp_path / str(number), less)
        (said,) = check_told(open_bundle(bundle))
        assert str(last if last != "warm" else outer[-1]) in said and said.startswith(
            "it does not say "
        )


def test_a_pack_that_does_not_say_how_images_are_prepared_is_missed(
    eight: Path, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(eight, tmp_path / "less"))
    file = bundle / "domains" / "cold.safetensors"
    write_pack(file, replace(read_pack(file), images={}))
    rehash(bundle)
    (said,) = check_told(open_bundle(bundle))
    assert said.startswith("it does not say input in the pack of cold, as every export")


def test_the_list_of_what_is_not_checked_is_on_the_page() -> None:
    page = (Path(__file__).parents[3] / "docs" / "export.md").read_text("utf-8")
    (line,) = (line for line in page.splitlines() if line.startswith("Not checked are "))
    for kind in UNCHECKED:
        assert f"`{kind.rpartition('.')[2]}`" in line


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m["input"]["normalisation"].update(mean=[0, 0, 0]), "input's mean is (0.0, 0.0"),
        (lambda m: m["input"]["normalisation"].update(std=[1, 1, 1]), "input's std is (1.0, 1.0"),
        (lambda m: m["input"]["resize"].update(shorter_side=64), "input's shorter_side is 64 in"),
        (lambda m: m["input"].pop("orientation"), "input's orientation is ignore in the manifest"),
        (lambda m: m["domains"][0]["classes"].reverse(), "class 0 of warm is "),
        (lambda m: m["budget"].update(asked=0.6), "budget.asked is 0.6 in the manifest, the"),
    ],
)
def test_what_answers_are_made_with_is_the_checkpoints(
    good: Path, tiny: Path, tmp_path: Path, change: Any, said: str
) -> None:
    manifest = json.loads((good / "manifest.json").read_text())
    change(manifest)
    bundle = written(good, tmp_path / "other.prunion", manifest)
    assert any(said in problem for problem in verify_bundle(bundle, against=tiny).problems)
