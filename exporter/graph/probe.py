"""Probe images, and graphs run on them in ONNX Runtime whatever type their `image` input has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prunion.runtime.base import default_threads, relative_error
from prunion.runtime.errors import VerificationError
from prunion.runtime.graph import beside_others

__all__ = [
    "Probe",
    "chunks",
    "make_probe",
    "open_graph",
    "relative_errors",
    "run_beside",
    "run_graph",
]

# Images at a time: enough to mix domains, while a ResNet-50's activations stay small. ONNX Runtime
# holds more of them, torch rearranges its weights for every batch.
CHUNK, TORCH_CHUNK = 2, 4


@dataclass(frozen=True, eq=False)
class Probe:
    """The same images twice: `pixels` `[N, H, W, 3]` uint8, `images` `[N, 3, H, W]` normalised."""

    pixels: np.ndarray
    images: np.ndarray
    domains: np.ndarray

    @classmethod
    def of(
        cls, pixels: np.ndarray, mean: Sequence[float], std: Sequence[float], domains: np.ndarray
    ) -> Probe:
        """Images of these pixels, normalised, each of one of `domains` `[N]`."""
        means, stds = np.array([mean, std], dtype=np.float32)
        images = (pixels.astype(np.float32) / np.float32(255) - means) / stds
        return cls(pixels, np.ascontiguousarray(images.transpose(0, 3, 1, 2)), domains)

    def take(self, rows: np.ndarray) -> Probe:
        """Those of its images, by number or by mask; a probe without pixels stays without."""
        pixels = self.pixels[rows] if len(self.pixels) else self.pixels
        return Probe(pixels, self.images[rows], self.domains[rows])


def chunks(count: int, size: int = TORCH_CHUNK) -> Iterator[slice]:
    """Runs of `count` images that are computed together, each still a mixed batch."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def make_probe(
    count: int,
    size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    *,
    domains: int,
) -> Probe:
    """`count` images of noise (unlike a picture it reaches every channel), domains in turn."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, *size, 3), dtype=np.uint8)
    return Probe.of(pixels, mean, std, np.arange(count, dtype=np.int64) % domains)


def open_graph(graph: Path | bytes) -> Any:
    """An ONNX Runtime session on the CPU, which gives memory back after every batch."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    options.log_severity_level = 4  # what fails is raised; a log would quote the file's names
    threads = default_threads()
    if threads is not None:
        options.intra_op_num_threads = threads
    model = graph if isinstance(graph, bytes) else str(graph)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run_graph(session: Any, probe: Probe, size: int = CHUNK) -> np.ndarray:
    """`logits [N, Cmax]` of a graph that takes float32, float16 or uint8 images, `size` at once."""
    kinds = {value.name: value.type for value in session.get_inputs()}
    image = {
        "tensor(uint8)": probe.pixels,
        "tensor(float16)": probe.images.astype(np.float16),
    }.get(kinds["image"], probe.images)
    parts = []
    for part in chunks(len(image), size):
        feeds = {"image": image[part]}
        if "domain" in kinds:
            feeds["domain"] = probe.domains[part]
        parts.append(np.asarray(session.run(["logits"], feeds)[0], dtype=np.float32))
    return np.concatenate(parts)


def run_beside(session: Any, probe: Probe) -> tuple[np.ndarray, np.ndarray]:
    """`logits [M, Cmax]` of the probe's images, all in twos and then in batches of several sizes.

    Returns them behind the rows `[M]` of the probe that they answer: what they are compared with is
    computed in other batches, or alone, and differs where an image's answer depends on its batch.
    """
    count = len(probe.domains)
    rows = [np.arange(count)[part] for part in chunks(count, CHUNK)]
    rows += beside_others(count, *probe.images.shape[2:])
    parts = [run_graph(session, probe.take(part), len(part)) for part in rows]
    return np.concatenate(rows), np.concatenate(parts)


def relative_errors(
    reference: np.ndarray, other: np.ndarray, domains: np.ndarray, names: Sequence[str], what: str
) -> dict[str, float]:
    """`max |Δ| / max |reference|` of each domain that has rows in `domains` `[N]`.

    Raises VerificationError where the two do not have the same classes: a finite logit for each,
    -inf past them (NaN is neither, even where both have it).
    """
    errors = {}
    for domain, name in enumerate(names):
        rows = domains == domain
        if not rows.any():
            continue
        own = np.isfinite(reference[rows])
        same = other.shape == reference.shape and np.array_equal(own, np.isfinite(other[rows]))
        past = [np.isneginf(x[rows][~own]).all() for x in (reference, other)] if same else [False]
        if not own.any() or not all(past):
            raise VerificationError(
                f"domain {name}: {what} has other classes (or values that are not finite) than "
                "what it is compared with"
            )
        errors[name] = relative_error(reference[rows][own], other[rows][own])
    return errors
