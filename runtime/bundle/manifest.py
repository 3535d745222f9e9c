"""`manifest.json`: what a bundle holds, checked key by key."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunion.runtime.base.checks import Fields, safe_relative_path
from prunion.runtime.base.files import read_json
from prunion.runtime.bundle.manifest_parts import (
    BankEntry,
    Budget,
    Domain,
    ImageInput,
    listed,
    read_bank,
    read_budget,
    read_domains,
    read_input,
)
from prunion.runtime.errors import BundleError

__all__ = ["BankEntry", "Budget", "Domain", "ImageInput", "Manifest", "load_manifest"]

FORMAT_VERSION = 1
HEADS = ("gathered", "concatenated", "single")


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
        domains=read_domains(top, files),
        input=read_input(top.fields("input")),
        budget=read_budget(top.fields("budget")),
        params=_numbers(top.fields("params"), ("backbone", "exported")),
        macs=_numbers(top.fields("macs"), ("backbone", "exported")),
        widths=_widths(top.fields("widths")),
        units=listed(top, "units", top.get("units"), files),
        bank=read_bank(top),
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
    return {key: listed(graphs, key, graphs.get(key), files) for key in graphs.value}
