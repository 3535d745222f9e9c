"""`manifest.json`: what a bundle holds. One schema, read and checked key by key, and written."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from prunion.runtime.base import Fields, is_whole, read_json, safe_relative_path, shown
from prunion.runtime.bundle.adapters import AdapterEntry, read_adapters
from prunion.runtime.bundle.manifest_parts import (
    BankEntry,
    BudgetAccount,
    Domain,
    ImageInput,
    file_of,
    read_bank,
    read_counts,
    read_domains,
)
from prunion.runtime.bundle.manifest_record import PaperAccount, Provenance, Rounding, Verified
from prunion.runtime.errors import BundleError

__all__ = ["BankEntry", "BudgetAccount", "Domain", "ImageInput", "Manifest", "load_manifest"]

FORMAT_VERSION = 1
WITH_OWN_WEIGHTS = 2  # an earlier prunion would answer with the trunk's weights
LATEST = 3  # likewise without adapters beside them, or with no weights at all
HEADS = ("gathered", "concatenated", "single")
T = TypeVar("T")


@dataclass(frozen=True)
class Manifest:
    """Everything that `manifest.json` says, in the file's own order.

    Attributes:
        params, macs: `backbone` and `exported` count the trunk's weights and its
            multiply-accumulates for one image; other keys stand beside them.
        widths: each layer's output channels, before and after.
        rounding, paper, verified, provenance: how the bundle was made; None where it does not say.
        heads: `gathered`, `concatenated` or `single` (a bundle specialised to one domain).
        units: the unit table's file.
        bank: the bank's columns in order.
        trunk_hash: hex SHA-256 of the trunk that packs must be made for.
        files: hex SHA-256 of every file but the manifest, by its path in the bundle.
        graphs: the file of each precision.
        own_weights: file of what the domains' own weights have in common; "" where all domains
            share the trunk's weights.
        adapters: columns of the graph's table of adapters; empty where it has none.
        packed: whether that file also holds weights that the graphs themselves do not.
    """

    name: str
    domains: tuple[Domain, ...]
    input: ImageInput
    budget: BudgetAccount
    params: Mapping[str, float]
    macs: Mapping[str, float]
    widths: Mapping[str, tuple[int, int]]
    rounding: Rounding | None
    paper: PaperAccount | None
    heads: str
    units: str
    bank: tuple[BankEntry, ...]
    trunk_hash: str
    files: Mapping[str, str]
    graphs: Mapping[str, str]
    verified: Verified | None
    provenance: Provenance | None
    own_weights: str = ""
    adapters: tuple[AdapterEntry, ...] = ()
    packed: bool = False

    @property
    def bank_columns(self) -> int:
        """P, the length of one row of the bank."""
        return sum(entry.size for entry in self.bank)

    @property
    def max_classes(self) -> int:
        """Cmax, the width of `logits`."""
        return max(len(domain.classes) for domain in self.domains)

    @property
    def round_to(self) -> int:
        """Kept widths are multiples of this; 1 where the bundle does not say."""
        return 1 if self.rounding is None else self.rounding.multiple

    @property
    def model_sha256(self) -> str:
        """Of the checkpoint's tensors, which tells networks of one trunk apart; "" if not told."""
        return self.provenance.model_sha256 if self.provenance else ""

    def views(self, domain: Domain) -> int | None:
        """Of how many views of a test image a domain's accuracy is; None where nothing tells.

        An earlier prunion's bundle has it in its run's configuration alone.
        """
        if domain.views is not None or self.provenance is None:
            return domain.views
        shape, domains = (self.provenance.config.get(key) for key in ("input", "domains"))
        if not isinstance(shape, Mapping) or not isinstance(domains, Mapping):
            return None
        own, crops = domains.get(domain.name), shape.get("test_crops", 0)
        if not isinstance(own, Mapping) or not is_whole(crops, 1, 10):
            return None
        return 5 if crops == 10 and not own.get("mirror") else int(crops)

    @classmethod
    def from_json(cls, value: Any, source: str) -> Manifest:
        """Check the file's value; `source` names it in messages.

        Raises:
            BundleError: naming the key and the fix. Keys that nobody knows are left out.
        """
        top = Fields(value, "", source)
        version = top.get("format_version")
        known = range(FORMAT_VERSION, LATEST + 1)
        if type(version) is not int or version not in known:  # 1.0 and true are equal to 1
            raise BundleError(
                f"{source}: format_version is {version!r}, this prunion reads {FORMAT_VERSION} "
                f"to {LATEST}: "
                "export the bundle again or install the prunion that wrote it"
            )
        files = _files(top)
        own = version == WITH_OWN_WEIGHTS or (version == LATEST and "own_weights" in top.value)
        return cls(
            name=top.text("name", 200),
            domains=read_domains(top, files),
            input=ImageInput.from_json(top.fields("input")),
            budget=BudgetAccount.from_json(top.fields("budget")),
            params=read_counts(top.fields("params")),
            macs=read_counts(top.fields("macs")),
            widths=_widths(top.fields("widths")),
            rounding=_if_told(top, "rounding", Rounding.from_json),
            paper=_if_told(top, "paper", PaperAccount.from_json),
            heads=_heads(top),
            units=file_of(top, "units", top.get("units"), files),
            bank=read_bank(top),
            trunk_hash=_sha256(top, "trunk_hash", top.get("trunk_hash")),
            files=files,
            graphs=_graphs(top, files),
            verified=_if_told(top, "verified", Verified.from_json),
            provenance=_if_told(top, "provenance", Provenance.from_json),
            own_weights=file_of(top, "own_weights", top.get("own_weights"), files) if own else "",
            adapters=read_adapters(top) if version == LATEST else (),
            packed=own and version == LATEST and top.flag("packed"),
        )

    @property
    def _version(self) -> int:
        if self.adapters or self.packed:
            return LATEST
        return WITH_OWN_WEIGHTS if self.own_weights else FORMAT_VERSION

    def to_json(self) -> dict[str, Any]:
        """The file's value, keys in the order that it is written in."""
        value: dict[str, Any] = {
            "format_version": self._version,
            "name": self.name,
            "domains": [domain.to_json() for domain in self.domains],
            "input": self.input.to_json(),
            "budget": self.budget.to_json(),
            "params": dict(self.params),
            "macs": dict(self.macs),
            "widths": {layer: list(pair) for layer, pair in self.widths.items()},
            "rounding": self.rounding and self.rounding.to_json(),
            "paper": self.paper and self.paper.to_json(),
            "heads": self.heads,
            "units": self.units,
            "bank": [entry.to_json() for entry in self.bank],
            "trunk_hash": self.trunk_hash,
            "files": dict(self.files),
            "graphs": dict(self.graphs),
            "own_weights": self.own_weights or None,
            "packed": self.packed or None,
            "adapters": [entry.to_json() for entry in self.adapters] or None,
            "verified": self.verified and self.verified.to_json(),
            "provenance": self.provenance and self.provenance.to_json(),
        }
        return {key: part for key, part in value.items() if part is not None}


def load_manifest(path: Path | str) -> Manifest:
    """Read and check a `manifest.json`. Raises BundleError naming the key and the fix."""
    return Manifest.from_json(read_json(path, BundleError), str(path))


def _if_told(top: Fields, key: str, read: Callable[[Fields], T]) -> T | None:
    return read(top.fields(key)) if key in top.value else None


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


def _widths(fields: Fields) -> dict[str, tuple[int, int]]:
    widths: dict[str, tuple[int, int]] = {}
    for layer in fields.value:
        pair = fields.items(layer, 2)
        if len(pair) != 2 or not all(isinstance(n, int) and n >= 0 for n in pair):
            raise fields.fail(layer, "must be [width before, width after]")
        widths[layer] = (pair[0], pair[1])
    return widths


def _heads(top: Fields) -> str:
    heads = top.get("heads", "gathered")
    if heads not in HEADS:
        raise top.fail("heads", f"is {heads!r}, this prunion knows {', '.join(HEADS)}")
    if heads == "single" and len(top.get("domains")) != 1:
        raise top.fail("heads", "is 'single' where there is more than one domain")
    if heads == "single" and "own_weights" in top.value:
        raise top.fail("own_weights", "is given, and the one domain's weights are the graph's")
    return str(heads)


def _graphs(top: Fields, files: Mapping[str, str]) -> dict[str, str]:
    graphs = top.fields("graphs")
    if not graphs.value:
        raise top.fail("graphs", "is empty")
    found: dict[str, str] = {}
    for key in graphs.value:
        file = file_of(graphs, key, graphs.get(key), files)
        if file in found.values():
            raise graphs.fail(key, f"is {shown(file)}, another precision's file")
        found[key] = file
    return found
