"""Bundles whose domains have weights of their own: what they refuse, hold, and answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from prunion.exporter.graph import (
    TOLERANCE,
    Agreement,
    Probe,
    check_errors,
    masked_logits,
    open_graph,
    relative_errors,
    run_graph,
)
from prunion.exporter.options import ExportOptions
from prunion.runtime.base import free_memory
from prunion.runtime.bundle import Pack
from prunion.runtime.errors import ConfigError
from prunion.runtime.graph import GraphForm, pin_form
from prunion.trainer.network import DomainNet, merge_weights

__all__ = [
    "SHARED",
    "answer_alone",
    "check_options",
    "own_pack",
    "prepare_trunk",
    "verify_alone",
]

SHARED = "shared.safetensors"


def prepare_trunk(net: DomainNet) -> None:
    """Make the trunk what the bundle's graph is to hold; an only domain's weights go into it."""
    merge_weights(net)
    if net.adapter is None:
        return
    with torch.no_grad():
        shared = {name: net.trunk.get_parameter(name) for name in net.adapter.names}
        for name, value in net.adapter.base(shared).items():
            net.trunk.get_parameter(name).copy_(value)


def check_options(options: ExportOptions, method: str) -> None:
    """Raise ConfigError for a form that holds one set of weights for all domains."""
    wanted = {"--fp16": options.fp16, "--int8": options.int8, "--torch": options.torch}
    for flag, asked in wanted.items():
        if asked:
            raise ConfigError(
                f'{flag} writes one trunk for all domains, and method is "{method}", whose domains '
                "have weights of their own: leave it out, or give --specialise with one domain"
            )


def own_pack(net: DomainNet, row: int, pack: Pack) -> Pack:
    """The pack of row `row` with what the method gives the domain of its own weights."""
    return pack if net.adapter is None else replace(pack, own=net.adapter.stored(row))


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
        VerificationError: a domain's answers differ by more than the tolerance.
    """
    names = [pack.name for pack in packs]
    rows = np.arange(len(images)) % len(names)
    expected = masked_logits(net, images, torch.from_numpy(rows))
    free_memory()
    got = answer_alone(graph, form, packs, Probe(np.empty(0), images.numpy(), rows))
    errors = relative_errors(expected, got, rows, names, "ONNX Runtime")
    check_errors(errors, TOLERANCE, "ONNX Runtime", "the trained network")
    return Agreement(errors, errors)


def answer_alone(graph: bytes, form: GraphForm, packs: Sequence[Pack], probe: Probe) -> np.ndarray:
    """`[N, Cmax]`: every image by the graph of its own domain, -inf past the domain's classes."""
    found = np.full((len(probe.domains), max(len(p.classes) for p in packs)), -np.inf, np.float32)
    for row, pack in enumerate(packs):
        mine = probe.domains == row
        if mine.any():
            pixels = probe.pixels[mine] if len(probe.pixels) else probe.pixels
            part = Probe(pixels, probe.images[mine], probe.domains[mine])
            session = open_graph(pin_form(graph, form, pack))
            found[mine, : len(pack.classes)] = run_graph(session, part)
    return found
