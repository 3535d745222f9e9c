"""The parts of `manifest.json` that nothing answers by: how a bundle was made and checked.

`paper` counts as dos Santos, Berriel, Oliveira-Santos, Sebe and Almeida do, "Budget-Aware Pruning:
Handling Multiple Domains with Less Parameters", 2023, arXiv 2309.11464.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from prunion.runtime.base import Fields

__all__ = [
    "Int8Account",
    "PaperAccount",
    "Provenance",
    "Rounding",
    "VariantCheck",
    "Verified",
    "mean_share",
]

MAX_COUNT = 2**53


@dataclass(frozen=True)
class Rounding:
    """Kept widths are multiples of `multiple`; `added` by layer: channels that no domain uses."""

    multiple: int
    added: Mapping[str, int]

    @classmethod
    def from_json(cls, fields: Fields) -> Rounding:
        """`rounding`."""
        added = fields.fields("added")
        return cls(
            fields.integer("multiple", 1, MAX_COUNT),
            {layer: added.integer(layer, 0, MAX_COUNT) for layer in added.value},
        )

    def to_json(self) -> dict[str, Any]:
        """The value of `rounding`."""
        return {"multiple": self.multiple, "added": dict(self.added)}


@dataclass(frozen=True)
class PaperAccount:
    """Bits and operations by the papers' rules; `params` and `flop` are shares of the backbone's.

    `macs_domains` has the operations of each domain's own channels. `flop` is their mean, which the
    papers print; `flop_union` is what all domains together use, slices too. `method` is the run's,
    "" where the bundle does not say.
    """

    bits_backbone: int
    bits_exported: int
    params: float
    macs_backbone: int
    macs_exported: int
    macs_domains: Mapping[str, int]
    flop: float
    flop_union: float
    method: str = ""

    @classmethod
    def from_json(cls, fields: Fields) -> PaperAccount:
        """`paper`."""
        bits, macs = fields.fields("bits"), fields.fields("macs")
        domains = macs.fields("domains")
        own = {name: domains.integer(name, 0, MAX_COUNT) for name in domains.value}
        backbone, flop = macs.integer("backbone", 0, MAX_COUNT), fields.number("flop")
        if "flop_union" in fields.value:
            union = fields.number("flop_union")
        else:  # of an earlier prunion, whose `flop` was the union's
            union, flop = flop, mean_share(own.values(), backbone)
        return cls(
            bits_backbone=bits.integer("backbone", 0, MAX_COUNT),
            bits_exported=bits.integer("exported", 0, MAX_COUNT),
            params=fields.number("params"),
            macs_backbone=backbone,
            macs_exported=macs.integer("exported", 0, MAX_COUNT),
            macs_domains=own,
            flop=flop,
            flop_union=union,
            method=fields.text("method", 50) if "method" in fields.value else "",
        )

    def to_json(self) -> dict[str, Any]:
        """The value of `paper`."""
        return {
            "bits": {"backbone": self.bits_backbone, "exported": self.bits_exported},
            "params": self.params,
            "macs": {
                "backbone": self.macs_backbone,
                "exported": self.macs_exported,
                "domains": dict(self.macs_domains),
            },
            "flop": self.flop,
            "flop_union": self.flop_union,
            **({"method": self.method} if self.method else {}),
        }


def mean_share(costs: Collection[float], whole: float) -> float:
    """The mean of costs as a share of the whole one; 0 where there is nothing to average."""
    return sum(costs) / (len(costs) * whole) if costs and whole else 0.0


@dataclass(frozen=True)
class Int8Account:
    """What INT8 cost: shares of right answers by domain, `(fp32, int8)`, on its test images.

    `max_drop` is the most percentage points that a domain was allowed to lose; `outputs` the type
    of the convolutions' outputs, `int8` or `float32`.
    """

    accuracy: Mapping[str, tuple[float, float]]
    test_images: Mapping[str, int]
    max_drop: float
    calibration_images: int
    outputs: str

    @classmethod
    def from_json(cls, fields: Fields) -> Int8Account:
        """The keys of `verified.variants.int8` that only it has."""
        accuracy, images = fields.fields("accuracy"), fields.fields("test_images")
        return cls(
            accuracy={name: _pair(accuracy, name) for name in accuracy.value},
            test_images={name: images.integer(name, 1, MAX_COUNT) for name in images.value},
            max_drop=_max_drop(fields),
            calibration_images=fields.integer("calibration_images", 1, MAX_COUNT),
            outputs=fields.text("outputs", 50),
        )

    def to_json(self) -> dict[str, Any]:
        """The same keys."""
        return {
            "accuracy": {name: list(pair) for name, pair in self.accuracy.items()},
            "test_images": dict(self.test_images),
            "max_drop": self.max_drop,
            "calibration_images": self.calibration_images,
            "outputs": self.outputs,
        }


@dataclass(frozen=True)
class VariantCheck:
    """One graph held against the fp32 one: `max |Δ| / max |reference|` by domain, and its limit.

    `float32_layers`: what float16 is too small for, each with the largest value that it meets.
    """

    max_relative_error: Mapping[str, float]
    tolerance: float
    int8: Int8Account | None = None
    float32_layers: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def from_json(cls, fields: Fields) -> VariantCheck:
        """One entry of `verified.variants`."""
        errors = fields.fields("max_relative_error")
        layers = fields.fields("float32_layers") if "float32_layers" in fields.value else None
        return cls(
            {name: errors.number(name) for name in errors.value},
            fields.number("tolerance"),
            Int8Account.from_json(fields) if "accuracy" in fields.value else None,
            {} if layers is None else {name: layers.number(name) for name in layers.value},
        )

    def to_json(self) -> dict[str, Any]:
        """The entry."""
        return {
            "max_relative_error": dict(self.max_relative_error),
            "tolerance": self.tolerance,
            **({"float32_layers": dict(self.float32_layers)} if self.float32_layers else {}),
            **({} if self.int8 is None else self.int8.to_json()),
        }


@dataclass(frozen=True)
class Verified:
    """What the export compared before it wrote anything: fp32 with torch, variants with fp32."""

    max_relative_error: float
    tolerance: float
    variants: Mapping[str, VariantCheck]

    @classmethod
    def from_json(cls, fields: Fields) -> Verified:
        """`verified`; a bundle without variants may leave the key out."""
        variants = fields.fields("variants") if "variants" in fields.value else None
        return cls(
            fields.number("max_relative_error"),
            fields.number("tolerance"),
            {}
            if variants is None
            else {name: VariantCheck.from_json(variants.fields(name)) for name in variants.value},
        )

    def to_json(self) -> dict[str, Any]:
        """The value of `verified`."""
        return {
            "max_relative_error": self.max_relative_error,
            "tolerance": self.tolerance,
            "variants": {name: check.to_json() for name, check in self.variants.items()},
        }


@dataclass(frozen=True)
class Provenance:
    """Who made the bundle, with what, from which run; `config` is the resolved run file.

    `trained_with` is None, and `model_sha256` (of the checkpoint's tensors) "", where the bundle
    does not say.
    """

    prunion: str
    versions: Mapping[str, str]
    trained_with: Mapping[str, str] | None
    seed: int
    created: str
    config: Mapping[str, Any]
    model_sha256: str = ""

    @classmethod
    def from_json(cls, fields: Fields) -> Provenance:
        """`provenance`. Its texts are for people: any are taken."""
        trained = fields.fields("trained_with").value if "trained_with" in fields.value else None
        return cls(
            prunion=str(fields.get("prunion")),
            versions=fields.fields("versions").value,
            trained_with=trained,
            seed=fields.get("seed"),
            created=str(fields.get("created")),
            config=fields.fields("config").value,
            model_sha256=str(fields.value.get("model_sha256", "")),
        )

    def to_json(self) -> dict[str, Any]:
        """The value of `provenance`."""
        trained = {} if self.trained_with is None else {"trained_with": dict(self.trained_with)}
        return {
            "prunion": self.prunion,
            "versions": dict(self.versions),
            **trained,
            **({"model_sha256": self.model_sha256} if self.model_sha256 else {}),
            "seed": self.seed,
            "created": self.created,
            "config": dict(self.config),
        }


def _pair(fields: Fields, key: str) -> tuple[float, float]:
    pair = fields.items(key, 2)
    shares = [x for x in pair if isinstance(x, (int, float)) and 0 <= x <= 1]
    if len(shares) != 2:
        raise fields.fail(key, "must be [accuracy before, accuracy after], each in 0..1")
    return pair[0], pair[1]


def _max_drop(fields: Fields) -> float:
    """The largest drop of accuracy that was allowed, in percentage points."""
    value = fields.number("max_drop")
    if not 0 <= value <= 100:
        raise fields.fail("max_drop", f"is {value:g}, outside 0..100")
    return value
