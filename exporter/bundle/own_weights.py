"""Bundles whose domains have weights of their own: what they refuse, hold, and answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch

from prunion.exporter.graph import (
    TOLERANCE,
    Agreement,
    Probe,
    check_errors,
    open_graph,
    relative_errors,
    run_beside,
    run_graph,
    save_graph,
    trained_logits,
)
from prunion.exporter.options import ExportOptions
from prunion.exporter.slim import SlimNet
from prunion.runtime.base import free_memory
from prunion.runtime.bundle import Pack, empty_weights, pack_bits, packed_parts
from prunion.runtime.errors import ConfigError
from prunion.runtime.graph import GraphForm, pin_form
from prunion.trainer.config import TrainConfig
from prunion.trainer.cost import tabled_adapters
from prunion.trainer.network import DomainNet, fill_trunk, merge_weights

__all__ = [
    "SHARED",
    "answer_alone",
    "apart",
    "beside_in_own",
    "check_options",
    "empty_graphs",
    "holds_slices",
    "own_pack",
    "prepare_trunk",
    "shared_parts",
    "verify_alone",
]

SHARED = "shared.safetensors"


def prepare_trunk(net: DomainNet, *, dense: bool = False) -> None:
    """Make the trunk what the bundle's graph is to hold; an only domain's weights go into it.

    Slices stay apart from it, which a bundle packs; with `dense` an only domain's go into it too.
    """
    if dense or not holds_slices(net):
        merge_weights(net)
    fill_trunk(net)


def holds_slices(net: DomainNet) -> bool:
    """Whether its domains choose single slices of the trunk's weights."""
    return net.adapter is not None and bool(net.adapter.slices())


def apart(net: DomainNet) -> bool:
    """Whether each domain needs a graph of its own."""
    return net.adapter is not None and not tabled_adapters(net)


def check_options(options: ExportOptions, net: DomainNet, train: TrainConfig) -> None:
    """Raise ConfigError for a form that holds one set of weights for all domains."""
    if net.adapter is None:
        return
    method = f'method is "{train.method}"'
    method += ' and granularity "slice"' if train.granularity == "slice" else ""
    method += f" and adapter_rank {train.adapter_rank}" if train.adapter_rank else ""
    # Adapters in the graph of all domains have no INT8 form: their sum comes before the scale.
    fp16 = options.fp16 and apart(net)
    for flag, asked in (("--fp16", fp16), ("--int8", options.int8), ("--torch", options.torch)):
        if asked:
            raise ConfigError(
                f"{flag} writes one trunk for all domains, and {method}, so domains have weights "
                "of their own: leave it out, or give --specialise with one domain"
            )


def shared_parts(net: DomainNet, slim: SlimNet) -> dict[str, np.ndarray]:
    """What the domains' own weights have in common beside the trunk, by `PART:WEIGHT`.

    Of slices it is the trunk itself: those that any domain uses, one after the other.
    """
    found: dict[str, np.ndarray] = {}
    for name, bits in slim.slices.items():
        weight = slim.trunk.get_parameter(name).detach().numpy()
        found |= packed_parts(name, weight, np.asarray(bits.any(0)))
    if found or net.adapter is None or not apart(net):
        return found
    return net.adapter.shared_parts()


def empty_graphs(folder: Path, shared: Mapping[str, np.ndarray]) -> None:
    """Leave out of every graph in a folder the weights that its shared parts hold."""
    if not any(key.startswith("packed:") for key in shared):
        return
    for path in folder.glob("*.onnx"):
        model = onnx.load(path)
        empty_weights(model, shared)
        save_graph(model, path)


def own_pack(net: DomainNet, row: int, pack: Pack, slim: SlimNet) -> Pack:
    """The pack of row `row` with what the method gives the domain of its own weights.

    What stands in the graph of all domains is in the pack already.
    """
    if net.adapter is None or not apart(net):
        return pack
    if slim.slices:
        bits = {name: pack_bits(on[row][on.any(0)]) for name, on in slim.slices.items()}
        return replace(pack, own={f"slices_of:{name}": on for name, on in bits.items()})
    return replace(pack, own=net.adapter.stored(row))


def verify_alone(
    net: DomainNet,
    graph: bytes,
    form: GraphForm,
    packs: Sequence[Pack],
    images: torch.Tensor,
) -> Agreement:
    """Each domain's own graph, as the runtime makes it, against its torch network.

    Args:
        graph: of the bundle, fp32.
        packs: of all its domains, with the parts that they share.
        images: `[N, 3, H, W]` normalised, N at least the number of domains.

    Raises:
        VerificationError: a domain's answers differ by more than the tolerance, or the trained
            network's are not finite.
    """
    names = [pack.name for pack in packs]
    rows = np.arange(len(images)) % len(names)
    expected = trained_logits(net, images, torch.from_numpy(rows), names)
    free_memory()
    probe = Probe(np.empty(0), images.numpy(), rows)
    got = answer_alone(graph, form, packs, probe)
    errors = relative_errors(expected, got, rows, names, "ONNX Runtime")
    check_errors(errors, TOLERANCE, "ONNX Runtime", "the trained network")
    alone, beside = beside_in_own(graph, form, packs[0], probe)
    error = relative_errors(alone, beside, np.zeros(len(alone)), names[:1], "a batch")
    check_errors(error, TOLERANCE, "an image beside others", "the image alone")
    return Agreement(errors, errors)


def answer_alone(graph: bytes, form: GraphForm, packs: Sequence[Pack], probe: Probe) -> np.ndarray:
    """`[N, Cmax]`: every image by the graph of its own domain, -inf past the domain's classes."""
    found = np.full((len(probe.domains), max(len(p.classes) for p in packs)), -np.inf, np.float32)
    for row, pack in enumerate(packs):
        mine = probe.domains == row
        if mine.any():
            session = open_graph(pin_form(graph, form, pack))
            found[mine, : len(pack.classes)] = run_graph(session, probe.take(mine))
    return found


def beside_in_own(
    graph: bytes, form: GraphForm, pack: Pack, probe: Probe
) -> tuple[np.ndarray, np.ndarray]:
    """The probe's images by one domain's own graph, alone and beside others, both `[M, C]`.

    All domains' graphs have the same nodes, so one of them tells whether images are mixed.
    """
    session = open_graph(pin_form(graph, form, pack))
    rows, beside = run_beside(session, probe)
    return run_graph(session, probe, 1)[rows], beside
