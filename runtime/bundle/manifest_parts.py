"""The parts of `manifest.json` that have a shape of their own, each with its reader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prunion.runtime.base.checks import Fields, check_text, is_number

__all__ = [
    "BankEntry",
    "Budget",
    "Domain",
    "ImageInput",
    "listed",
    "read_bank",
    "read_budget",
    "read_domains",
    "read_input",
]

MAX_DOMAINS = 4096
MAX_CLASSES = 100_000
MAX_SIDE = 4096
MAX_COUNT = 2**53


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


def read_domains(top: Fields, files: Mapping[str, str]) -> tuple[Domain, ...]:
    """Every domain, in order. Raises BundleError for a name that comes twice."""
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
        pack = listed(fields, "pack", fields.get("pack"), files)
        domains.append(Domain(fields.text("name", 200), tuple(classes), pack, accuracy))
    if not domains:
        raise top.fail("domains", "is empty")
    names = [domain.name for domain in domains]
    for name in names:
        if names.count(name) > 1:
            raise top.fail("domains", f"names {name!r} twice")
    return tuple(domains)


def read_input(fields: Fields) -> ImageInput:
    """`input`, which must be of a kind that this runtime prepares images for."""
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


def read_budget(fields: Fields) -> Budget:
    """`budget`; of kind `latency` with what its profile predicted."""
    asked = fields.get("asked")
    if not is_number(asked) and not isinstance(asked, str):
        raise fields.fail("asked", "must be a number, or a text such as '4 MB'")
    kind, value, met = fields.text("kind", 50), fields.number("value"), fields.flag("met")
    backbone = fields.number("backbone", 0.0)
    if kind != "latency":
        return Budget(kind, asked, value, met, backbone)
    predicted = (fields.number("milliseconds"), fields.number("share"))
    return Budget(kind, asked, value, met, backbone, *predicted, fields.text("device"))


def read_bank(top: Fields) -> tuple[BankEntry, ...]:
    """`bank`, whose entries follow one another without a gap."""
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


def listed(fields: Fields, key: str, value: Any, files: Mapping[str, str]) -> str:
    """`value` if it is one of `files`, else BundleError naming `key`."""
    if not isinstance(value, str) or value not in files:
        raise fields.fail(key, f"is {value!r}, which `files` does not list")
    return value
