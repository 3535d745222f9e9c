"""Domain packs: one domain's row of the bank, its head and its class names."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from prunion.runtime.base import (
    Seen,
    check_text,
    given_twice,
    is_pipe,
    json_of,
    path_argument,
    reason_of,
    replace_file,
    shown,
)
from prunion.runtime.bundle.adapters import AdapterEntry, adapter_row
from prunion.runtime.bundle.manifest_parts import ImageInput
from prunion.runtime.bundle.weight_parts import check_own
from prunion.runtime.errors import BundleError

__all__ = [
    "Pack",
    "check_pack",
    "no_pack",
    "pack_bytes",
    "pack_sha256",
    "read_pack",
    "sorted_metadata",
    "write_pack",
]

FORMAT = "prunion-pack"
FORMAT_VERSION = 1
WITH_OWN_WEIGHTS = 2  # what an earlier prunion must not take for a pack of the trunk alone
MAX_BYTES = 1 << 30
MAX_HEADER = 100_000_000  # safetensors' own limit
TENSORS = {
    "bank": ("float32", 1),
    "head_weight": ("float32", 2),
    "head_bias": ("float32", 1),
    "switches": ("uint8", 1),
}
METADATA = {"format", "format_version", "name", "classes", "trunk_hash", "input"}


@dataclass(frozen=True, eq=False)
class Pack:
    """One domain.

    Attributes:
        name: the domain's name.
        classes: its C class names.
        bank: `[P]` float32, its row of the bank.
        head_weight: `[F, C]` float32.
        head_bias: `[C]` float32.
        switches: `[U]` uint8, which units of the sliced trunk it uses.
        trunk_hash: hex SHA-256 of the trunk it was trained on.
        own: what it stores of trunk weights of its own, by `PART:WEIGHT` (`own_weights`).
        images: how images were prepared for it, as a manifest's `input`; empty where it does not
            say. Frozen trunks of two runs are alike, and these may not be.
    """

    name: str
    classes: tuple[str, ...]
    bank: np.ndarray
    head_weight: np.ndarray
    head_bias: np.ndarray
    switches: np.ndarray
    trunk_hash: str
    own: Mapping[str, np.ndarray] = field(default_factory=dict)
    images: Mapping[str, Any] = field(default_factory=dict)


def write_pack(path: Path | str, pack: Pack, was: Seen | None = None) -> None:
    """Write `pack` as safetensors, whole or not at all; the same bytes for the same pack.

    `was` is what may be replaced, as of `replace_file`.
    """
    data = pack_bytes(pack, str(path))
    with replace_file(path, was) as temporary:
        temporary.write_bytes(data)


def pack_sha256(pack: Pack) -> str:
    """Of the file that `write_pack` would write: packs of one trunk answer alike if it is equal."""
    return sha256(pack_bytes(pack, f"pack {pack.name!r}")).hexdigest()


def pack_bytes(pack: Pack, where: str) -> bytes:
    """Of the file that `write_pack` writes; `where` is for the BundleError of what is no pack."""
    metadata = {
        "format": FORMAT,
        "format_version": str(WITH_OWN_WEIGHTS if pack.own else FORMAT_VERSION),
        "name": pack.name,
        "classes": json.dumps(list(pack.classes), ensure_ascii=False),
        "trunk_hash": pack.trunk_hash,
        **({"input": json.dumps(pack.images, sort_keys=True)} if pack.images else {}),
    }
    _check(pack, where)
    tensors = {name: np.ascontiguousarray(getattr(pack, name)) for name in TENSORS}
    tensors |= {name: np.ascontiguousarray(pack.own[name]) for name in sorted(pack.own)}
    return sorted_metadata(save(tensors, metadata))


def sorted_metadata(data: bytes) -> bytes:
    """A safetensors file with its metadata in order, which the library writes in any order."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json_of(data[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text + data[start:]


def read_pack(path: Path | str, data: bytes | None = None) -> Pack:
    """Read and check a pack, from `data` if its bytes are there already.

    Raises BundleError naming the file and what is wrong in it, and InputError where `path` is none.
    """
    path = path_argument("pack", path)
    if data is None and is_pipe(path):
        raise BundleError(f"{path} is a pipe or a device: give a domain pack's file")
    try:
        if data is None and path.stat().st_size > MAX_BYTES:
            raise BundleError(f"{path} is larger than {MAX_BYTES >> 20} MiB: not a domain pack")
        data = path.read_bytes() if data is None else data
        found, metadata = load(data), _metadata(data)
        missing = sorted(TENSORS.keys() - set(found))
        if missing:
            raise BundleError(f"{path} lacks {', '.join(missing)}: export the pack again")
        tensors = {name: found[name] for name in TENSORS}
    except FileNotFoundError:
        raise BundleError(f"{path} does not exist: give a domain pack's path") from None
    except KeyError as exc:  # a type that NumPy has not
        kind = shown(exc.args[0])
        raise BundleError(f"{path} holds values of type {kind}: export the pack again") from None
    except (OSError, SafetensorError, AttributeError, TypeError, ValueError) as exc:
        raise BundleError(
            f"{path} is no readable pack ({reason_of(exc)}): copy or export it again"
        ) from None
    name, classes, trunk_hash, images = _identity(metadata, path)
    own = {}
    if metadata["format_version"] == str(WITH_OWN_WEIGHTS):
        # In order, which the library does not keep: what is told of the first is told again.
        own = {name: found[name] for name in sorted(found) if name not in TENSORS}
    unknown = [*(found.keys() - TENSORS.keys() - own.keys()), *(metadata.keys() - METADATA)]
    if unknown:
        raise BundleError(f"{path} holds {shown(min(unknown))}, which no pack has: export it again")
    pack = Pack(name, classes, trunk_hash=trunk_hash, own=own, images=images, **tensors)
    _check(pack, str(path))
    return pack


def no_pack(path: Path) -> str:
    """Why a file is none that `write_pack` wrote, damaged or not; "" if it is one."""
    if not path.is_file():
        return "is a folder"
    try:
        with path.open("rb") as file:
            start = file.read(8)
            header = file.read(min(int.from_bytes(start, "little"), MAX_HEADER))
        metadata = _metadata(start + header)
    except (OSError, ValueError, RecursionError):
        metadata = {}
    own = metadata.get("format") == FORMAT or not path.stat().st_size
    return "" if own else "is no domain pack"


def _metadata(data: bytes) -> dict[str, str]:
    """The metadata of a safetensors file, which the library gives for a path only."""
    header = json_of(data[8 : 8 + int.from_bytes(data[:8], "little")])
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    return metadata if isinstance(metadata, dict) else {}


def check_pack(
    pack: Pack,
    *,
    trunk_hash: str,
    columns: int,
    features: int | None = None,
    units: int | None = None,
    own: bool = False,
    adapters: Sequence[AdapterEntry] = (),
    images: ImageInput | None = None,
) -> None:
    """Raise BundleError unless `pack` is sound and fits `columns` P, `features` F, `units` U.

    Args:
        images: how the bundle prepares images.
        own: whether the bundle is one whose domains may have weights of their own.
        adapters: or what its graph has beside convolutions for each of them.
    """
    _check(pack, f"pack {pack.name!r}")
    if adapters:
        adapter_row(adapters, pack.own)
    elif pack.own and not own:
        raise BundleError(
            f"pack {pack.name!r} has weights of its own, and this bundle's domains share theirs: "
            "add it to a bundle of its own method"
        )
    if pack.trunk_hash != trunk_hash:
        raise BundleError(
            f"pack {pack.name!r} was made for trunk {pack.trunk_hash[:12]}, this bundle has "
            f"{trunk_hash[:12]}: take the pack from the run this bundle was exported from, "
            "and export the bundle with all domains of that run"
        )
    if images is not None and pack.images and dict(pack.images) != images.to_json():
        here = images.to_json()
        key = next(k for k in {**here, **pack.images} if here.get(k) != pack.images.get(k))
        raise BundleError(
            f"pack {pack.name!r} was made for images whose {key} is {shown(pack.images.get(key))}, "
            f"this bundle's is {shown(here.get(key))}: train it on this bundle's checkpoint"
        )
    if len(pack.bank) != columns:
        raise BundleError(f"pack {pack.name!r}: bank is [{len(pack.bank)}], expected [{columns}]")
    if features is not None and pack.head_weight.shape[0] != features:
        got = pack.head_weight.shape[0]
        raise BundleError(f"pack {pack.name!r}: head takes {got} features, expected {features}")
    if units is not None and len(pack.switches) != units:
        got = len(pack.switches)
        raise BundleError(f"pack {pack.name!r} has {got} switches, expected {units}")


def _identity(
    metadata: dict[str, str], path: Path
) -> tuple[str, tuple[str, ...], str, dict[str, Any]]:
    if metadata.get("format") != FORMAT:
        raise BundleError(f"{path} is not a domain pack (format {metadata.get('format')!r})")
    if metadata.get("format_version") not in (str(FORMAT_VERSION), str(WITH_OWN_WEIGHTS)):
        raise BundleError(
            f"{path}: format_version is {metadata.get('format_version')!r}, "
            f"this prunion reads up to {WITH_OWN_WEIGHTS}: export the pack again"
        )
    try:
        classes = json_of(metadata["classes"])
        name, trunk_hash = metadata["name"], metadata["trunk_hash"]
        images = json_of(metadata.get("input", "{}"))
    except (KeyError, ValueError, RecursionError) as exc:
        raise BundleError(f"{path}: damaged metadata ({exc!r}): export the pack again") from None
    if not isinstance(classes, list) or not all(isinstance(x, str) for x in classes):
        raise BundleError(f"{path}: classes must be a list of names: export the pack again")
    if not isinstance(images, dict):
        raise BundleError(f"{path}: input must be an object: export the pack again")
    return name, tuple(classes), trunk_hash, images


def _check(pack: Pack, where: str) -> None:
    for text in (pack.name, *pack.classes):
        check_text(text, 1000, lambda p: BundleError(f"{where}: a name {p}: export the pack again"))
    if (twice := given_twice(pack.classes)) is not None:
        raise BundleError(
            f"{where} has two classes named {shown(twice)}: rename one and train again"
        )
    for name, (dtype, rank) in TENSORS.items():
        value = getattr(pack, name)
        if value.dtype != dtype or value.ndim != rank:
            raise BundleError(
                f"{where}: {name} is {value.dtype} of rank {value.ndim}, "
                f"expected {dtype} of rank {rank}: export the pack again"
            )
        if dtype == "float32" and not np.isfinite(value).all():
            raise BundleError(f"{where}: {name} holds NaN or infinity: export the pack again")
    count = len(pack.classes)
    if not count or pack.head_weight.shape[1] != count or pack.head_bias.shape != (count,):
        raise BundleError(
            f"{where}: head is {list(pack.head_weight.shape)} + {list(pack.head_bias.shape)} "
            f"for {count} classes: export the pack again"
        )
    if pack.switches.size and pack.switches.max() > 1:
        raise BundleError(f"{where}: switches must be 0 or 1: export the pack again")
    check_own(pack.own, where)
