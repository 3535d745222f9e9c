"""Three forms of one network, one answer: masked torch, sliced torch, ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from prunion.exporter.graph.probe import Probe, chunks, open_graph, relative_errors, run_beside
from prunion.exporter.slim import OneDomainNet, SlimNet
from prunion.runtime.base import free_memory
from prunion.runtime.errors import VerificationError
from prunion.trainer.network import DomainNet

__all__ = [
    "TOLERANCE",
    "Agreement",
    "check_errors",
    "masked_logits",
    "tolerance_of",
    "trained_logits",
    "verify_export",
]

# Of the largest logit, on noise. They are fixed: a limit made from the measurement cannot fail.
TOLERANCE = 1e-4
# float16 keeps 11 bits through dozens of layers. Eight bits leave each layer's output an error of
# 1 to 2 % (the step is 1/127 of the largest value, which is 4 to 8 times the root mean square; its
# own error is 1/√12 of it), and a hundred layers add it in squares to 10 to 20 %. Trained
# EfficientNet-Lite0 shows 0.2, and 0.33 where it loses 6.5 points; zeros in place of logits are 1.
# Whether INT8 is good enough is for its accuracy to say (`--int8-max-drop`).
TOLERANCES = {"fp16": 3e-2, "int8": 0.5}

CANCELLING = 16.0  # how many times the largest logit its terms come to, where rounding tells


def tolerance_of(variant: str) -> float:
    """Largest relative error a graph variant (`fp16`, `fp16-uint8`, …) may have on noise."""
    return TOLERANCES.get(variant.removesuffix("-uint8"), TOLERANCE)


@dataclass(frozen=True)
class Agreement:
    """Largest `max |Δ| / max |reference|` of each domain in one mixed batch.

    Attributes:
        sliced: sliced torch against masked torch, by domain name.
        onnx: ONNX Runtime against masked torch, by domain name.
    """

    sliced: Mapping[str, float]
    onnx: Mapping[str, float]

    @property
    def worst(self) -> float:
        """The largest relative error of all."""
        return max(*self.sliced.values(), *self.onnx.values())


def verify_export(
    net: DomainNet,
    slim: SlimNet | OneDomainNet,
    graph: Path,
    images: torch.Tensor,
    names: Sequence[str],
    tolerance: float = TOLERANCE,
) -> Agreement:
    """Run one mixed batch through all three forms, the torch ones a few images at a time.

    ONNX Runtime answers the same images in other batches, up to one larger than a server's: it
    would differ where an image's answer depends on those beside it.

    Args:
        images: `[N, 3, H, W]` normalised, N at least twice the number of domains.

    Raises:
        VerificationError: two forms differ by more than `tolerance` of the largest logit, naming
            the domain and the pair; or the trained network's own logits are not finite.
    """
    domains = torch.arange(len(images)) % len(names)
    reference = trained_logits(net, images, domains, names)
    free_memory()
    sliced = _sliced_logits(slim, images, domains)
    free_memory()
    rows = domains.numpy()
    compared = []
    session, probe = open_graph(graph), Probe(np.empty(0), images.numpy(), rows)
    beside, exported = run_beside(session, probe)
    for expected, other, of, what in (
        (reference, sliced, rows, "the sliced network"),
        (reference[beside], exported, rows[beside], "ONNX Runtime"),
    ):
        errors = relative_errors(expected, other, of, names, what)
        try:
            check_errors(errors, tolerance, what, "the trained network")
        except VerificationError as exc:
            hint = _cancelling_heads(net, images, domains, names)
            raise VerificationError(f"{exc}{hint}") from None
        compared.append(errors)
    return Agreement(*compared)


def _cancelling_heads(
    net: DomainNet, images: torch.Tensor, domains: torch.Tensor, names: Sequence[str]
) -> str:
    """What to do where float32 has too few digits for logits, else nothing.

    Of terms that cancel, the rounding stays: heads do that on features that hardly differ.
    """
    cancelling = []
    net.eval()
    for row, name in enumerate(names):
        own, (weight, bias) = images[domains == row], net.heads[row].parameters()
        with torch.no_grad():
            features, _ = net.features(own, [(row, len(own))])
            added = features.abs() @ weight.abs().T + bias.abs()
            if added.max() > CANCELLING * (features @ weight.T + bias).abs().max():
                cancelling.append(name)
    if not cancelling:
        return ""
    return (
        f". The logits of {', '.join(cancelling)} are small differences of large terms, as "
        "where features hardly differ between images: train longer, or with [train] head_start = "
        '"random"'
    )


def trained_logits(
    net: DomainNet, images: torch.Tensor, domains: torch.Tensor, names: Sequence[str]
) -> np.ndarray:
    """`masked_logits`, which are to be compared with something.

    Raises VerificationError of a domain in which they are not finite.
    """
    found = masked_logits(net, images, domains)
    for row, name in enumerate(names):
        if not np.isfinite(found[(domains == row).numpy(), : net.classes[row]]).all():
            raise VerificationError(
                f"domain {name}: the trained network's own answers to noise are not finite: train "
                "again with lower rates ([train] lr and its like), or look for a log, a root or a "
                "division that leaves its range; nothing was written"
            )
    return found


def masked_logits(net: DomainNet, images: torch.Tensor, domains: torch.Tensor) -> np.ndarray:
    """`[N, Cmax]` of the trained network in float32, switches on and off as they are."""
    net.eval()
    with torch.no_grad():
        parts = [net.logits(images[x], domains[x]).numpy() for x in chunks(len(images))]
    return np.concatenate(parts)


def _sliced_logits(
    slim: SlimNet | OneDomainNet, images: torch.Tensor, domains: torch.Tensor
) -> np.ndarray:
    with torch.no_grad():
        if isinstance(slim, OneDomainNet):
            parts = [slim(images[x]).numpy() for x in chunks(len(images))]
        else:
            parts = [slim.logits(images[x], domains[x]).numpy() for x in chunks(len(images))]
    return np.concatenate(parts)


def check_errors(errors: Mapping[str, float], tolerance: float, what: str, reference: str) -> None:
    """Raise VerificationError naming the first domain whose error is over the tolerance."""
    for name, error in errors.items():
        if not error <= tolerance:
            raise VerificationError(
                f"domain {name}: {what} differs from {reference} by {error:.2e} of the largest "
                f"logit, more than {tolerance:.0e}; nothing was written"
            )
