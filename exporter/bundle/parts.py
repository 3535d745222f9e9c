"""What differs between a graph of all domains and one of a single domain, and its check."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import torch

from prunion.exporter.bundle.manifest import image_input
from prunion.exporter.bundle.own_weights import (
    answer_alone,
    apart,
    own_pack,
    shared_parts,
    verify_alone,
)
from prunion.exporter.bundle.packs import domain_pack, hash_trunk, trunk_hash
from prunion.exporter.graph import (
    Agreement,
    check_one_colour,
    masked_logits,
    one_colour_probe,
    one_domain_graph,
    onnx_graph,
    open_graph,
    run_graph,
    verify_export,
)
from prunion.exporter.options import ExportOptions
from prunion.exporter.slim import OneDomainNet, SlimNet, fold_domain
from prunion.runtime.base import HEADS
from prunion.runtime.bundle import BankEntry, Pack, UnitTable, completed
from prunion.runtime.graph import GraphForm
from prunion.trainer.network import Checkpoint

__all__ = ["Parts", "make_parts", "verify_parts"]


@dataclass(frozen=True)
class Parts:
    """What differs between a graph of several domains and one of a single domain."""

    net: SlimNet | OneDomainNet
    model: onnx.ModelProto
    table: UnitTable
    packs: list[Pack]
    bank: tuple[BankEntry, ...]


def make_parts(slim: SlimNet, loaded: Checkpoint, options: ExportOptions) -> Parts:
    """The graph that `options` ask for. Raises PrunionError where torch cannot write it."""
    size, domains = loaded.config.input.size, loaded.meta["domains"]
    images = image_input(loaded)
    if options.specialise is None:
        model = onnx_graph(slim, *size, options.opset, options.ir, options.heads)
        digest = trunk_hash(slim, shared_parts(loaded.net, slim))
        packs = [
            own_pack(loaded.net, row, domain_pack(slim, row, domain, digest, images), slim)
            for row, domain in enumerate(domains)
        ]
        return Parts(slim, model, slim.table, packs, slim.entries)
    net = fold_domain(slim)
    model = one_domain_graph(net, *size, options.opset, options.ir)
    digest = hash_trunk(dict(net.trunk.named_parameters()), [])
    whole = domain_pack(slim, 0, domains[0], digest, images)
    pack = replace(whole, bank=np.zeros(0, np.float32))
    return Parts(net, model, net.table, [pack], ())


def verify_parts(
    loaded: Checkpoint, slim: SlimNet, parts: Parts, graph: Path, options: ExportOptions
) -> Agreement:
    """The written graph against its torch network, all domains at once or each alone.

    Raises VerificationError where they differ.
    """
    names, shape = [d["name"] for d in loaded.meta["domains"]], loaded.config.input
    images = _probe(2 * len(names), *shape.size)
    flat = one_colour_probe(shape.size, shape.mean, shape.std, domains=len(names))
    rows = torch.from_numpy(flat.domains)
    expected = masked_logits(loaded.net, torch.from_numpy(flat.images), rows)
    # Noise before images of one colour: it tells a network whose own answers are not finite.
    if not apart(loaded.net):
        agreement = verify_export(loaded.net, parts.net, graph, images, names)
        got = run_graph(open_graph(graph), flat)
        check_one_colour(expected, got, flat, names, "ONNX Runtime")
        return agreement
    shared = shared_parts(loaded.net, slim)
    whole = [replace(pack, own=completed(pack.own, shared)) for pack in parts.packs]
    form = GraphForm(HEADS[options.heads], "float32", image_input(loaded))
    agreement = verify_alone(loaded.net, graph.read_bytes(), form, whole, images)
    got = answer_alone(graph.read_bytes(), form, whole, flat)
    check_one_colour(expected, got, flat, names, "ONNX Runtime")
    return agreement


def _probe(count: int, height: int, width: int) -> torch.Tensor:
    """Normalised noise: unlike real images it reaches every channel."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(max(count, 4), 3, height, width, generator=generator)
