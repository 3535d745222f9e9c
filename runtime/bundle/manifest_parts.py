"""The parts of `manifest.json` that answering needs: each class reads and writes its own keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from prunion.runtime.base import (
    Fields,
    Orientation,
    amount_text,
    check_text,
    given_twice,
    is_number,
    shown,
)

__all__ = [
    "MAX_CLASSES",
    "MAX_DOMAINS",
    "MAX_RESIZE",
    "MAX_SIDE",
    "BankEntry",
    "BudgetAccount",
    "Domain",
    "ImageInput",
    "cost_text",
    "counts_to_json",
    "file_of",
    "read_bank",
    "read_counts",
    "read_domains",
]

# Training keeps to these too: what nobody could open should not be trained first.
MAX_DOMAINS = 4096
MAX_CLASSES = 1_000_000  # of a domain; the file's size bounds what they all take
MAX_SIDE, MAX_RESIZE = 4096, 8192
MAX_COUNT = 2**53
# Of pixels in 0 … 1: the squares of what it divides are numbers of 32 bits. A run file must leave
# room for sums of them (1e-15), which a run of before had not to: its bundle is read.
LEAST_STD = 1e-18


@dataclass(frozen=True)
class Domain:
    """One domain: its row of the bank is its place in `Manifest.domains`.

    `pack` is its file in the bundle, `accuracy` a share of 1 or None where it was not measured, and
    `views` of how many views of a test image it is the mean answer's; None where that is not told.
    """

    name: str
    classes: tuple[str, ...]
    pack: str
    accuracy: float | None = None
    views: int | None = None

    @classmethod
    def from_json(cls, fields: Fields, files: Mapping[str, str]) -> Domain:
        """One entry of `domains`."""
        classes = fields.items("classes", MAX_CLASSES)
        if not classes:
            raise fields.fail("classes", "is empty")
        for name in classes:
            check_text(name, 1000, lambda problem: fields.fail("classes", problem))
        if (twice := given_twice(classes)) is not None:
            raise fields.fail("classes", f"names {shown(twice)} twice")
        accuracy = fields.get("accuracy", None)
        if accuracy is not None and not (is_number(accuracy) and 0 <= accuracy <= 1):
            raise fields.fail("accuracy", "must be a number in 0..1")
        told = "accuracy_views" in fields.value
        views = fields.integer("accuracy_views", 1, MAX_COUNT) if told else None
        pack = file_of(fields, "pack", fields.get("pack"), files)
        return cls(fields.text("name", 200), tuple(classes), pack, accuracy, views)

    def to_json(self) -> dict[str, Any]:
        """The entry; `accuracy` and `accuracy_views` only where they are known."""
        known = {"accuracy": self.accuracy, "accuracy_views": self.views}
        value = {"name": self.name, "classes": list(self.classes), "pack": self.pack}
        return value | {key: number for key, number in known.items() if number is not None}


@dataclass(frozen=True)
class ImageInput:
    """What the fp32 graph's `image` input expects; sizes in pixels.

    `orientation` is whether image files are turned as their EXIF says; a bundle that does not say
    is from before they were.
    """

    height: int
    width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    shorter_side: int
    channels: int = 3
    dtype: str = "float32"
    interpolation: str = "bilinear"
    crop: str = "center"
    orientation: Orientation = "ignore"

    @classmethod
    def from_json(cls, fields: Fields) -> ImageInput:
        """`input`, which must be of a kind that this runtime prepares images for."""
        resize, normalisation = fields.fields("resize"), fields.fields("normalisation")
        fixed = [(fields, "dtype", cls.dtype), (resize, "interpolation", cls.interpolation)]
        for place, key, known in [*fixed, (resize, "crop", cls.crop)]:
            if place.get(key) != known:
                raise place.fail(key, f"is {place.get(key)!r}, this prunion knows {known!r}")
        orientation = fields.get("orientation", "ignore")
        if orientation not in get_args(Orientation):
            known = " and ".join(map(repr, get_args(Orientation)))
            raise fields.fail("orientation", f"is {shown(orientation)}, this prunion knows {known}")
        return cls(
            height=fields.integer("height", 1, MAX_SIDE),
            width=fields.integer("width", 1, MAX_SIDE),
            channels=fields.integer("channels", 3, 3),
            mean=_triple(normalisation, "mean", 0),
            std=_triple(normalisation, "std", LEAST_STD),
            shorter_side=resize.integer("shorter_side", 1, MAX_RESIZE),
            orientation=orientation,
        )

    @property
    def keeps_whole(self) -> bool:
        """Whether an image of `height` by `width` is neither resized nor cropped."""
        return min(self.height, self.width) == self.shorter_side

    def to_json(self) -> dict[str, Any]:
        """The value of `input`; `orientation` only where images are turned."""
        value: dict[str, Any] = {
            "height": self.height,
            "width": self.width,
            "channels": self.channels,
            "dtype": self.dtype,
            "normalisation": {"mean": list(self.mean), "std": list(self.std)},
            "resize": {
                "shorter_side": self.shorter_side,
                "interpolation": self.interpolation,
                "crop": self.crop,
            },
        }
        return value if self.orientation == "ignore" else {**value, "orientation": "exif"}


@dataclass(frozen=True)
class BudgetAccount:
    """What was asked (`asked`, as written) and what the file costs (`value`, same unit).

    `backbone` is the whole network's cost, of which `value` may be a share (0: not told): more than
    1 where adapters cost beside it, which a share of 1 allows. Of kind `latency`, `milliseconds`
    and `share` are what the profile of `device` predicts. With `slices` the cost is of the k×k
    slices that any domain uses; else of all that the graph holds.
    """

    kind: str
    asked: float | str
    value: float
    met: bool
    backbone: float = 0.0
    milliseconds: float = 0.0
    share: float = 0.0
    device: str = ""
    slices: bool = False

    @classmethod
    def from_json(cls, fields: Fields) -> BudgetAccount:
        """`budget`; of kind `latency` with what its profile predicted."""
        asked = fields.get("asked")
        if not is_number(asked) and not isinstance(asked, str):
            raise fields.fail("asked", "must be a number, or a text such as '4 MB'")
        kind, value, met = fields.text("kind", 50), fields.number("value"), fields.flag("met")
        backbone = fields.number("backbone", 0.0)
        if kind != "latency":
            return cls(kind, asked, value, met, backbone, slices=fields.flag("slices", False))
        ms, share = fields.number("milliseconds"), fields.number("share")
        return cls(kind, asked, value, met, backbone, ms, share, device=fields.text("device"))

    def to_json(self) -> dict[str, Any]:
        """The value of `budget`."""
        value: dict[str, Any] = {"kind": self.kind, "asked": self.asked, "value": self.value}
        if self.backbone:
            value["backbone"] = self.backbone
        value["met"] = self.met
        if self.slices:
            value["slices"] = True
        if self.kind == "latency":
            value |= {"milliseconds": self.milliseconds, "share": self.share, "device": self.device}
        return value


def cost_text(budget: Mapping[str, Any]) -> str:
    """What a network costs, in words, by `BudgetAccount.to_json`: why more than all is met, too."""
    if budget["kind"] == "latency":
        return f"{budget['milliseconds']:.3f} ms predicted, share {amount_text(budget['share'])}"
    value = budget["value"]
    whole = budget["met"] and value > 1 and value != int(value)  # of a share, adapters beside it
    why = " (a limit of the whole asks for nothing)" if whole else ""
    return amount_text(value) + (" of the slices in use" if budget.get("slices") else "") + why


@dataclass(frozen=True)
class BankEntry:
    """Columns `[offset, offset + size)` of the bank: one layer's scales, shifts or gates."""

    layer: str
    kind: str
    offset: int
    size: int

    @classmethod
    def from_json(cls, fields: Fields) -> BankEntry:
        """One entry of `bank`."""
        return cls(
            layer=fields.text("layer"),
            kind=fields.text("kind", 50),
            offset=fields.integer("offset", 0, MAX_COUNT),
            size=fields.integer("size", 1, MAX_COUNT),
        )

    def to_json(self) -> dict[str, Any]:
        """The entry."""
        return {
            "layer": self.layer,
            "kind": self.kind,
            "offset": self.offset,
            "size": self.size,
        }


def read_domains(top: Fields, files: Mapping[str, str]) -> tuple[Domain, ...]:
    """Every domain, in order. Raises BundleError for a name that comes twice."""
    domains = tuple(
        Domain.from_json(Fields(item, f"domains[{index}]", top.source), files)
        for index, item in enumerate(top.items("domains", MAX_DOMAINS))
    )
    if not domains:
        raise top.fail("domains", "is empty")
    if (twice := given_twice(domain.name for domain in domains)) is not None:
        raise top.fail("domains", f"names {shown(twice)} twice")
    return domains


def read_bank(top: Fields) -> tuple[BankEntry, ...]:
    """`bank`, whose entries follow one another without a gap."""
    entries, expected = [], 0
    for index, item in enumerate(top.items("bank", 100_000)):
        fields = Fields(item, f"bank[{index}]", top.source)
        entry = BankEntry.from_json(fields)
        if entry.offset != expected:
            raise fields.fail("offset", f"is {entry.offset} where {expected} must follow")
        expected += entry.size
        entries.append(entry)
    return tuple(entries)


def read_counts(fields: Fields) -> dict[str, float]:
    """`params` or `macs`: the backbone's and the exported trunk's, and what stands beside them."""
    needed = counts_to_json(0, 0)
    return {key: fields.number(key) for key in dict.fromkeys((*needed, *fields.value))}


def counts_to_json(backbone: float, exported: float, **beside: float) -> dict[str, float]:
    """The value of `params` or `macs`; `beside` are counts of other parts of the file."""
    return {"backbone": backbone, "exported": exported, **beside}


def file_of(fields: Fields, key: str, value: Any, files: Mapping[str, str]) -> str:
    """`value` if it is one of `files`, else BundleError naming `key`."""
    if not isinstance(value, str) or value not in files:
        raise fields.fail(key, f"is {value!r}, which `files` does not list")
    return value


def _triple(fields: Fields, key: str, least: float) -> tuple[float, float, float]:
    """Three numbers from `least` to 1: with others all images would be one, or none."""
    values = fields.items(key, 3)
    if len(values) != 3 or not all(is_number(x) and least <= x <= 1 for x in values):
        raise fields.fail(key, f"must be three numbers from {least:g} to 1, for pixels in 0 … 1")
    return (float(values[0]), float(values[1]), float(values[2]))
