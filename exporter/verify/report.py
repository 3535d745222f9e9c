"""`prunion verify`: everything a bundle claims, found out again from its files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from prunion.exporter.graph.agreement import masked_logits, tolerance_of
from prunion.exporter.graph.probe import make_probe, open_graph, relative_errors, run_graph
from prunion.exporter.verify.budget import check_budget
from prunion.exporter.verify.files import (
    check_graph,
    check_packs,
    check_tables,
    check_trunk,
    check_unlisted,
)
from prunion.exporter.verify.int8 import measure_int8_again
from prunion.runtime.bundle.folder import Bundle, open_bundle
from prunion.runtime.errors import BundleError, DomainError, VerificationError
from prunion.trainer.network.checkpoint import Checkpoint, load_checkpoint

__all__ = ["Disagreement", "Report", "verify_bundle"]


@dataclass(frozen=True)
class Disagreement:
    """Two forms of one network compared on one domain: `error` is `max |Δ| / max |reference|`."""

    graph: str
    domain: str
    against: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance (NaN is not)."""
        return self.error <= self.tolerance


@dataclass(frozen=True)
class Report:
    """What was found: `problems` is empty when everything holds; `notes` are for the reader."""

    bundle: str
    graphs: tuple[str, ...]
    problems: tuple[str, ...]
    compared: tuple[Disagreement, ...]
    notes: tuple[str, ...] = ()

    @property
    def worst(self) -> Disagreement | None:
        """The comparison closest to (or furthest over) its tolerance."""
        return max(self.compared, key=lambda x: x.error / x.tolerance, default=None)


def verify_bundle(bundle: Path | str, *, against: Path | str | None = None) -> Report:
    """Check a bundle's files against each other, and its graphs in ONNX Runtime.

    Hashes, the trunk's too; onnx's full checker; widths, parameters and MACs counted again; the
    unit table's slots; every pack against the default tables; each domain alone against a mixed
    batch; every variant against the fp32 graph; and with `against` (a checkpoint) all of them
    against masked torch, and the INT8 graph's accuracy where the run's images are there.

    Raises:
        CheckpointError: `against` cannot be read.
    """
    try:
        opened = open_bundle(bundle)
    except BundleError as exc:
        return Report(str(bundle), (), (str(exc),), ())
    problems = [*check_unlisted(opened), *check_budget(opened)]
    sound = []
    for variant in opened.manifest.graphs:
        found = list(_guarded(variant, partial(_static, opened, variant)))
        problems += found
        if not found:
            sound.append(variant)
    compared: list[Disagreement] = []
    loaded = None if against is None else load_checkpoint(against)
    try:
        compared += _compare(opened, sound, loaded)
    except (VerificationError, DomainError) as exc:
        problems.append(str(exc))
    problems += [
        f"{x.graph} graph, domain {x.domain}: differs from {x.against} by {x.error:.2e} of the "
        f"largest logit, more than {x.tolerance:.0e}"
        for x in compared
        if not x.passed
    ]
    found, notes = measure_int8_again(opened, sound, loaded)
    problems += found
    graphs = tuple(opened.manifest.graphs)
    return Report(str(bundle), graphs, tuple(problems), tuple(compared), tuple(notes))


def _static(bundle: Bundle, variant: str) -> Iterator[str]:
    model = onnx.load(bundle.graph(variant))
    onnx.checker.check_model(model, full_check=True)
    yield from check_graph(bundle, model)
    yield from check_tables(bundle, model)
    yield from check_packs(bundle, model)
    if variant == "fp32":
        yield from check_trunk(bundle, model)


def _guarded(variant: str, check: Callable[[], Iterator[str]]) -> Iterator[str]:
    """A check's findings, and whatever it raises as one more."""
    try:
        yield from (f"{variant} graph: {problem}" for problem in check())
    except Exception as exc:  # a damaged file makes onnx and numpy raise anything
        yield f"{variant} graph: {' '.join(str(exc).split()) or type(exc).__name__}"


def _compare(bundle: Bundle, graphs: list[str], loaded: Checkpoint | None) -> list[Disagreement]:
    shape, names = bundle.manifest.input, bundle.domains
    count = max(2 * len(names), 4)
    size = (shape.height, shape.width)
    probe = make_probe(count, size, shape.mean, shape.std, domains=len(names))
    expected = None if loaded is None else _masked_logits(loaded, names, probe.images)
    found: list[Disagreement] = []
    base: np.ndarray | None = None

    def note(graph: str, what: str, errors: dict[str, float]) -> None:
        limit = tolerance_of(graph if what != "the mixed batch" else "fp32")
        if graph.startswith("int8") and what != "the mixed batch":
            limit = _claimed(bundle, graph, limit)
        found.extend(Disagreement(graph, d, what, e, limit) for d, e in errors.items())

    for graph in sorted(graphs, key=lambda g: g != "fp32"):
        try:
            session = open_graph(bundle.graph(graph))
            mixed = run_graph(session, probe)
            alone = np.full_like(mixed, -np.inf)
            for domain in range(len(names)):
                rows = probe.domains == domain
                alone[rows] = run_graph(session, probe.only(domain))[rows]
        except Exception as exc:  # ONNX Runtime's errors share no base but Exception
            reason = " ".join(str(exc).split())
            raise VerificationError(f"{graph} graph: ONNX Runtime refuses it: {reason}") from None
        where = f"the {graph} graph"
        errors = relative_errors(mixed, alone, probe.domains, names, where)
        note(graph, "the mixed batch", errors)
        if base is not None:
            errors = relative_errors(base, mixed, probe.domains, names, where)
            note(graph, "the fp32 graph", errors)
        if expected is not None:
            errors = relative_errors(expected, mixed, probe.domains, names, where)
            note(graph, "masked torch", errors)
        base = mixed if graph == "fp32" else base
    return found


def _claimed(bundle: Bundle, graph: str, least: float) -> float:
    """The tolerance that the export noted for an INT8 graph, which it judged by accuracy."""
    value: Any = bundle.manifest.raw
    for key in ("verified", "variants", graph, "tolerance"):
        value = value.get(key) if isinstance(value, Mapping) else None
    return max(least, value) if isinstance(value, float) else least


def _masked_logits(loaded: Checkpoint, names: tuple[str, ...], images: np.ndarray) -> np.ndarray:
    """Masked torch's logits, its domains matched to the bundle's by name."""
    import torch

    known = [domain["name"] for domain in loaded.meta["domains"]]
    lacking = [name for name in names if name not in known]
    if lacking:
        raise DomainError(f"the checkpoint has no domain {lacking[0]!r}: it has {', '.join(known)}")
    rows = torch.tensor([known.index(name) for name in names])
    domains = rows[torch.arange(len(images)) % len(names)]
    logits = masked_logits(loaded.net, torch.from_numpy(images), domains)
    widest = max(loaded.net.classes[row] for row in rows)
    return logits[:, :widest]
