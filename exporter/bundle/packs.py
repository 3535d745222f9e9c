"""Domain packs of a sliced network, and the hash that ties them to its trunk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from prunion.exporter.bundle.manifest import image_input
from prunion.exporter.bundle.own_weights import own_pack, prepare_trunk, shared_parts
from prunion.exporter.bundle.source import load_source
from prunion.exporter.graph import TRUNK
from prunion.exporter.options import ExportOptions
from prunion.exporter.slim import SlimNet, kept_units, slim_network
from prunion.runtime.base import check_output, json_of, listed
from prunion.runtime.bundle import (
    Domain,
    ImageInput,
    Pack,
    adapter_parts,
    completed,
    no_pack,
    pack_bytes,
    write_pack,
)
from prunion.runtime.errors import DomainError
from prunion.runtime.graph import TABLE_INPUTS
from prunion.trainer.network import load_checkpoint

__all__ = [
    "domain_pack",
    "export_pack",
    "graph_trunk_hash",
    "hash_trunk",
    "packs_of",
    "trunk_hash",
    "write_packs",
]


def export_pack(
    checkpoint: Path | str, domain: str, output: Path | str, *, force: bool = False
) -> Pack:
    """Write one domain of a checkpoint as a pack for the trunk that all its domains share.

    Raises:
        DomainError: the checkpoint has no such domain.
        PrunionError: `output` exists and `force` is false.
    """
    path = Path(output)
    was = check_output(path, force=force, wrote=no_pack, inputs=[checkpoint])
    loaded = load_checkpoint(checkpoint, merge=False)
    domains = loaded.meta["domains"]
    names = [entry["name"] for entry in domains]
    if domain not in names:
        raise DomainError(f"{checkpoint} has no domain {domain!r}: it has {listed(names)}")
    prepare_trunk(loaded.net)
    slim = slim_network(loaded.net, kept_units(loaded, loaded.net.switches))
    row = names.index(domain)
    digest = trunk_hash(slim, shared_parts(loaded.net, slim))
    plain = domain_pack(slim, row, domains[row], digest, image_input(loaded))
    pack = own_pack(loaded.net, row, plain, slim)
    write_pack(path, pack, was)
    return pack


def packs_of(checkpoint: Path | str, domains: Sequence[str], *, single: bool = False) -> list[Pack]:
    """The packs of a bundle of these domains of a checkpoint, with the parts that they share.

    Their trunk's hash is left out where weights of it are computed, which another machine may
    round otherwise. Raises CheckpointError, and DomainError as an export does.

    Args:
        single: of a graph of one domain, whose bank is folded into the trunk's weights.
    """
    names = tuple(domains)
    asked = ExportOptions(specialise=names[0]) if single else ExportOptions(domains=names)
    source = load_source(checkpoint, asked)
    net, entries = source.checkpoint.net, source.checkpoint.meta["domains"]
    slim = slim_network(net, source.alive)
    shared, packs = shared_parts(net, slim), []
    digest = "" if single or source.computed else trunk_hash(slim, shared)
    for row, entry in enumerate(entries):
        pack = own_pack(net, row, domain_pack(slim, row, entry, digest), slim)
        pack = replace(pack, bank=pack.bank[:0]) if single else pack
        packs.append(replace(pack, own=completed(pack.own, shared)) if source.own else pack)
    return packs


def trunk_hash(slim: SlimNet, shared: Mapping[str, np.ndarray] | None = None) -> str:
    """SHA-256 over the fp32 sliced weights, the bank's order, and what own weights share."""
    order = [[e.layer, e.kind, e.offset, e.size] for e in slim.entries]
    return hash_trunk(dict(slim.trunk.named_parameters()), order, shared)


def hash_trunk(
    weights: Mapping[str, torch.Tensor],
    order: list[list[Any]],
    shared: Mapping[str, np.ndarray] | None = None,
) -> str:
    """SHA-256 over named fp32 weights and an order of bank columns (none: BatchNorm folded).

    Args:
        shared: what the domains' own weights have in common, by `PART:WEIGHT`.

    All-zero tensors are left out, as torch's exporter leaves out such a bias.
    """
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        array = np.ascontiguousarray(value.detach().numpy().astype("<f4"))
        if not array.any():
            continue
        digest.update(f"{name}{list(array.shape)}".encode())
        digest.update(array.tobytes())
    digest.update(json.dumps(order).encode())
    for name, part in sorted((shared or {}).items()):
        digest.update(f"{name}{list(part.shape)}".encode())
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()


def graph_trunk_hash(
    model: onnx.ModelProto,
    order: list[list[Any]],
    shared: Mapping[str, np.ndarray] | None = None,
) -> str:
    """The same hash from an fp32 graph's initializers, which have the trunk's own names.

    torch's exporter names its own constants without a dot; it leaves the trunk's alone. Which of
    the trunk's have no dot either, or hold whole numbers, the graph's metadata tell.
    """
    own = {x.key: x.value for x in model.metadata_props}.get(TRUNK, "[]")
    named, float32 = set(json_of(own)), onnx.TensorProto.FLOAT
    held = {
        x.name: x
        for x in model.graph.initializer
        if x.name in named
        or ("." in x.name and x.data_type == float32 and x.name not in TABLE_INPUTS)
    }
    weights = {n: torch.from_numpy(numpy_helper.to_array(x).copy()) for n, x in held.items()}
    return hash_trunk(weights, order, shared)


def domain_pack(
    slim: SlimNet,
    row: int,
    domain: Mapping[str, Any],
    digest: str,
    images: ImageInput | None = None,
) -> Pack:
    """Row `row` of a sliced network's tables; `domain` gives its name and classes.

    `images` are how images are prepared for it.
    """
    count, entries = len(domain["classes"]), slim.adapter_entries
    return Pack(
        name=domain["name"],
        classes=tuple(domain["classes"]),
        bank=slim.bank[row].numpy(),
        head_weight=slim.head_weight[row, :, :count].numpy(),
        head_bias=slim.head_bias[row, :count].numpy(),
        switches=slim.used[row].astype(np.uint8),
        trunk_hash=digest,
        own=adapter_parts(entries, slim.adapters[row].numpy()) if entries else {},
        images={} if images is None else images.to_json(),
    )


def write_packs(
    folder: Path, packs: list[Pack], domains: list[Mapping[str, Any]], views: Sequence[int]
) -> tuple[Domain, ...]:
    """Write `domains/NAME.safetensors` in a folder that is new, and give the manifest's `domains`.

    The folder appears as a whole, so its files need not: each by `write_pack` would look through
    all others for what was left of it, and a thousand domains took a minute.

    `domains` are the checkpoint's, in the order of `packs`, and `views` of how many views of an
    image the accuracy of each is.
    """
    entries = []
    (folder / "domains").mkdir()
    for pack, domain, count in zip(packs, domains, views, strict=True):
        relative = f"domains/{pack.name}.safetensors"
        (folder / relative).write_bytes(pack_bytes(pack, relative))
        accuracy = domain.get("accuracy")
        of = None if accuracy is None else count
        entries.append(Domain(pack.name, pack.classes, relative, accuracy, of))
    return tuple(entries)
