"""`manifest.json`: what a bundle holds, checked key by key."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunion.runtime.checks import Fields, check_text, is_number, safe_relative_path
from prunion.runtime.errors import BundleError
from prunion.runtime.files import read_json

__all__ = ["BankEntry", "Budget", "Domain", "ImageInput", "Manifest", "load_manifest"]

FORMAT_VERSION = 1
MAX_DOMAINS = 4096
MAX_CLASSES = 100_000
MAX_SIDE = 4096
MAX_COUNT = 2**53
HEADS = ("gathered", "concatenated", "single")


@dataclass(frozen=True)
class Domain:
    """One domain: its row of the bank is its place in `Manifest.domains`."""

    name: str
    classes: tuple[str, ...]
    pack: str
    accuracy: float | None = None


@dataclass(frozen=True)
class ImageInput:
    """What the graph's `image` input expects; sizes in pixels."""

    height: int
    width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    shorter_side: int
    channels: int = 3
    dtype: str = "float32"
    interpolation: str = "bilinear"
    crop: str = "center"


@dataclass(frozen=True)
class Budget:
    """What was asked (`asked`, as written) and what the file costs (`value`, same unit).

    `backbone` is the whole network's cost, of which `value` may be a share (0: not told). Of kind
    `latency`, `milliseconds` and `share` are what the profile of `device` predicts.
    """

    kind: str
    asked: float | str
    value: float
    met: bool
    backbone: float = 0.0
    milliseconds: float = 0.0
    share: float = 0.0
    device: str = ""


@dataclass(frozen=True)
class BankEntry:
    """Columns `[offset, offset + size)` of the bank: one layer's scales, shifts or gates."""

    layer: str
    kind: str
    offset: int
    size: int


@dataclass(frozen=True)
class Manifest:
    """A typed view of `manifest.json`; `raw` is the file's value as it stands.

    `heads` is `gathered`, `concatenated` or `single` (a bundle specialised to one domain).
    """

    name: str
    domains: tuple[Domain, ...]
    input: ImageInput
    budget: Budget
    params: Mapping[str, float]
    macs: Mapping[str, float]
    widths: Mapping[str, tuple[int, int]]
    units: str
    bank: tuple[BankEntry, ...]
    trunk_hash: str
    files: Mapping[str, str]
    graphs: Mapping[str, str]
    raw: Mapping[str, Any]
    heads: str = "gathered"

    @property
    def bank_columns(self) -> int:
        """P, the length of one row of the bank."""
        return sum(entry.size for entry in self.bank)

    @property
    def max_classes(self) -> int:
        """Cmax, the width of `logits`."""
        return max(len(domain.classes) for domain in self.domains)


def load_manifest(path: Path | str) -> Manifest:
    """Read and check a `manifest.json`. Raises BundleError naming the key and the fix."""
    raw = read_json(path, BundleError)
    top = Fields(raw, "", str(path))
    version = top.get("format_version")
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise BundleError(
            f"{path}: format_version is {version!r}, this prunion reads {FORMAT_VERSION}: "
            "export the bundle again or install the prunion that wrote it"
        )
    files = _files(top)
    return Manifest(
        name=top.text("name", 200),
        domains=_domains(top, files),
        input=_input(top.fields("input")),
        budget=_budget(top.fields("budget")),
        params=_numbers(top.fields("params"), ("backbone", "exported")),
        macs=_numbers(top.fields("macs"), ("backbone", "exported")),
        widths=_widths(top.fields("widths")),
        units=_listed(top, "units", top.get("units"), files),
        bank=_bank(top),
        trunk_hash=_sha256(top, "trunk_hash", top.get("trunk_hash")),
        files=files,
        graphs=_graphs(top, files),
        raw=raw,
        heads=_heads(top),
    )


def _files(top: Fields) -> dict[str, str]:
    files: dict[str, str] = {}
    for path, digest in top.fields("files").value.items():
        if not safe_relative_path(path) or path == "manifest.json":
            raise top.fail(f"files[{path!r}]", "is not a plain path inside the bundle")
        files[path] = _sha256(top, f"files[{path!r}]", digest)
    return files


def _sha256(fields: Fields, key: str, value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{64}", value):
        raise fields.fail(key, "must be a SHA-256 in lower-case hex")
    return value


def _listed(fields: Fields, key: str, value: Any, files: Mapping[str, str]) -> str:
    if not isinstance(value, str) or value not in files:
        raise fields.fail(key, f"is {value!r}, which `files` does not list")
    return value


def _domains(top: Fields, files: Mapping[str, str]) -> tuple[Domain, ...]:
    domains = []
    for index, item in enumerate(top.items("domains", MAX_DOMAINS)):
        fields = Fields(item, f"domains[{index}]", top.source)
        classes = fields.items("classes", MAX_CLASSES)
        if not classes:
            raise fields.fail("classes", "is empty")
        for name in classes:
            check_text(name, 1000, lambda problem, f=fields: f.fail("classes", problem))
        accuracy = fields.get("accuracy", None)
        if accuracy is not None and not (is_number(accuracy) and 0 <= accuracy <= 1):
            raise fields.fail("accuracy", "must be a number in 0..1")
        pack = _listed(fields, "pack", fields.get("pack"), files)
        domains.append(Domain(fields.text("name", 200), tuple(classes), pack, accuracy))
    if not domains:
        raise top.fail("domains", "is empty")
    names = [domain.name for domain in domains]
    for name in names:
        if names.count(name) > 1:
            raise top.fail("domains", f"names {name!r} twice")
    return tuple(domains)


def _input(fields: Fields) -> ImageInput:
    resize, normalisation = fields.fields("resize"), fields.fields("normalisation")
    fixed = [(fields, "dtype", "float32"), (resize, "interpolation", "bilinear")]
    for place, key, known in [*fixed, (resize, "crop", "center")]:
        if place.get(key) != known:
            raise place.fail(key, f"is {place.get(key)!r}, this prunion knows {known!r}")
    std = _triple(normalisation, "std")
    if min(std) <= 0:
        raise normalisation.fail("std", "must be above zero")
    return ImageInput(
        height=fields.integer("height", 1, MAX_SIDE),
        width=fields.integer("width", 1, MAX_SIDE),
        channels=fields.integer("channels", 3, 3),
        mean=_triple(normalisation, "mean"),
        std=std,
        shorter_side=resize.integer("shorter_side", 1, MAX_SIDE),
    )


def _triple(fields: Fields, key: str) -> tuple[float, float, float]:
    values = fields.items(key, 3)
    if len(values) != 3 or not all(is_number(value) for value in values):
        raise fields.fail(key, "must be three finite numbers")
    return (float(values[0]), float(values[1]), float(values[2]))


def _budget(fields: Fields) -> Budget:
    asked = fields.get("asked")
    if not is_number(asked) and not isinstance(asked, str):
        raise fields.fail("asked", "must be a number, or a text such as '4 MB'")
    kind, value, met = fields.text("kind", 50), fields.number("value"), fields.flag("met")
    backbone = fields.number("backbone", 0.0)
    if kind != "latency":
        return Budget(kind, asked, value, met, backbone)
    predicted = (fields.number("milliseconds"), fields.number("share"))
    return Budget(kind, asked, value, met, backbone, *predicted, fields.text("device"))


def _numbers(fields: Fields, needed: tuple[str, ...]) -> dict[str, float]:
    return {key: fields.number(key) for key in dict.fromkeys((*needed, *fields.value))}


def _widths(fields: Fields) -> dict[str, tuple[int, int]]:
    widths: dict[str, tuple[int, int]] = {}
    for layer in fields.value:
        pair = fields.items(layer, 2)
        if len(pair) != 2 or not all(isinstance(n, int) and n >= 0 for n in pair):
            raise fields.fail(layer, "must be [width before, width after]")
        widths[layer] = (pair[0], pair[1])
    return widths


def _bank(top: Fields) -> tuple[BankEntry, ...]:
    entries, expected = [], 0
    for index, item in enumerate(top.items("bank", 100_000)):
        fields = Fields(item, f"bank[{index}]", top.source)
        entry = BankEntry(
            layer=fields.text("layer"),
            kind=fields.text("kind", 50),
            offset=fields.integer("offset", 0, MAX_COUNT),
            size=fields.integer("size", 1, MAX_COUNT),
        )
        if entry.offset != expected:
            raise fields.fail("offset", f"is {entry.offset} where {expected} must follow")
        expected += entry.size
        entries.append(entry)
    return tuple(entries)


def _heads(top: Fields) -> str:
    heads = top.get("heads", "gathered")
    if heads not in HEADS:
        raise top.fail("heads", f"is {heads!r}, this prunion knows {', '.join(HEADS)}")
    if heads == "single" and len(top.get("domains")) != 1:
        raise top.fail("heads", "is 'single' where there is more than one domain")
    return str(heads)


def _graphs(top: Fields, files: Mapping[str, str]) -> dict[str, str]:
    graphs = top.fields("graphs")
    if not graphs.value:
        raise top.fail("graphs", "is empty")
    return {key: _listed(graphs, key, graphs.get(key), files) for key in graphs.value}
