"""Three forms of one network, one answer: masked torch, sliced torch, ONNX Runtime."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from prunion.exporter.slim import SlimNet
from prunion.runtime.errors import VerificationError
from prunion.trainer.network import DomainNet

__all__ = ["TOLERANCE", "Agreement", "verify_export"]

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Agreement:
    """Largest `max |Δ| / max |reference|` of each domain in one mixed batch.

    Attributes:
        sliced: sliced torch against masked torch, by domain index.
        onnx: ONNX Runtime against masked torch, by domain index.
    """

    sliced: dict[int, float]
    onnx: dict[int, float]

    @property
    def worst(self) -> float:
        """The largest relative error of all."""
        return max(*self.sliced.values(), *self.onnx.values())


def verify_export(
    net: DomainNet, slim: SlimNet, graph: Path, images: torch.Tensor, names: list[str]
) -> Agreement:
    """Run one mixed batch through all three forms.

    Args:
        images: `[N, 3, H, W]` normalised, N at least twice the number of domains.

    Raises:
        VerificationError: two forms differ by more than 1e-4 of the largest logit, naming the
            domain and the pair.
    """
    domains = torch.arange(len(images)) % len(names)
    with torch.no_grad():
        reference = net.eval().logits(images, domains).numpy()
        sliced = slim.logits(images, domains).numpy()
    exported = _run_onnx(graph, images.numpy(), domains.numpy())
    return Agreement(
        _compare(reference, sliced, domains.numpy(), names, "the sliced network"),
        _compare(reference, exported, domains.numpy(), names, "ONNX Runtime"),
    )


def _run_onnx(graph: Path, images: np.ndarray, domains: np.ndarray) -> np.ndarray:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"image": images, "domain": domains})[0]


def _compare(
    reference: np.ndarray, other: np.ndarray, domains: np.ndarray, names: list[str], what: str
) -> dict[int, float]:
    errors = {}
    for domain, name in enumerate(names):
        rows = domains == domain
        own = np.isfinite(reference[rows])
        if not np.array_equal(own, np.isfinite(other[rows])):
            raise VerificationError(
                f"domain {name}: {what} has other classes (or values that are not finite) than "
                "the trained network"
            )
        expected, got = reference[rows][own], other[rows][own]
        error = float(np.abs(expected - got).max() / max(np.abs(expected).max(), 1e-12))
        if not error <= TOLERANCE:
            raise VerificationError(
                f"domain {name}: {what} differs from the trained network by {error:.2e} of the "
                f"largest logit, more than {TOLERANCE:.0e}; nothing was written"
            )
        errors[domain] = error
    return errors
