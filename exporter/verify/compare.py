"""A bundle's graphs run in ONNX Runtime on one probe, each held against what it should equal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from prunion.exporter.bundle import answer_alone
from prunion.exporter.graph import (
    TOLERANCE,
    Probe,
    check_one_colour,
    lost,
    make_probe,
    masked_logits,
    one_colour_probe,
    open_graph,
    relative_errors,
    run_graph,
    tolerance_of,
)
from prunion.runtime.base import PRECISIONS, Precision, one_line
from prunion.runtime.bundle import Bundle
from prunion.runtime.errors import DomainError, VerificationError
from prunion.runtime.graph import form_of
from prunion.trainer.network import Checkpoint

__all__ = [
    "Disagreement",
    "check_noted",
    "compare_graphs",
]


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


def compare_graphs(
    bundle: Bundle, graphs: list[str], loaded: Checkpoint | None
) -> tuple[list[Disagreement], list[str]]:
    """Each domain alone against the mixed batch, each variant against fp32, all against torch.

    Limits are prunion's own; a manifest cannot widen them.

    Args:
        graphs: keys of the manifest's `graphs`.
        loaded: a checkpoint to hold them against, or None.

    Returns:
        The comparisons, and a line for each that could not be made.
    """
    shape, names = bundle.manifest.input, bundle.domains
    count, size = max(2 * len(names), 4), (shape.height, shape.width)
    probe = make_probe(count, size, shape.mean, shape.std, domains=len(names))
    flat = one_colour_probe(size, shape.mean, shape.std, domains=len(names))
    of_flat: np.ndarray | None = None
    compared: list[Disagreement] = []
    problems: list[str] = []
    own = bool(bundle.manifest.own_weights)
    folded = bool(bundle.manifest.adapters)  # in a domain's own graph, which then rounds otherwise
    expected: np.ndarray | None = None
    base: np.ndarray | None = None
    if loaded is not None:
        try:
            expected = _masked_logits(loaded, names, probe.images)
            of_flat = _masked_logits(loaded, names, flat.images)
        except DomainError as exc:
            problems.append(str(exc))
    for graph in sorted(graphs, key=lambda g: g != "fp32"):
        try:
            mixed, alone = _run(bundle, PRECISIONS[graph], probe)
            answers = _mixed(bundle, PRECISIONS[graph], flat)
        except Exception as exc:  # ONNX Runtime's errors share no base but Exception
            reason = one_line(exc)
            problems.append(f"{graph} graph: ONNX Runtime refuses it: {reason}")
            continue
        of_flat = answers if of_flat is None else of_flat
        try:
            check_one_colour(of_flat, answers, flat, names, f"the {graph} graph")
        except VerificationError as exc:
            problems.append(str(exc))
        for against, reference, got, limit in (
            (
                "the mixed batch",
                None if own else mixed,
                alone,
                tolerance_of(graph) if folded else TOLERANCE,
            ),
            ("the fp32 graph", base, mixed, tolerance_of(graph)),
            ("masked torch", expected, mixed, tolerance_of(graph)),
        ):
            if reference is None:
                continue
            what = f"the {graph} graph"
            try:
                errors = relative_errors(reference, got, probe.domains, names, what)
            except VerificationError as exc:
                problems.append(f"{exc}: {against}")
                continue
            compared += [Disagreement(graph, d, against, e, limit) for d, e in errors.items()]
        base = mixed if graph == "fp32" else base
    return compared, problems


def check_noted(bundle: Bundle) -> Iterator[str]:
    """Limits that the export noted, none of which may be wider than prunion's own."""
    verified = bundle.manifest.verified
    if verified is None:
        return
    noted = {"fp32": verified.tolerance}
    noted |= {graph: check.tolerance for graph, check in verified.variants.items()}
    for graph, tolerance in noted.items():
        limit = tolerance_of(graph)
        if not tolerance <= limit:
            yield (
                f"{graph} graph: its export noted a tolerance of {tolerance:.3g}, this prunion "
                f"allows {limit:.0e}: export the bundle again"
            )
    for check in verified.variants.values():
        for name, (before, after) in check.int8.accuracy.items() if check.int8 else ():
            if check.int8 and lost({name: before}, {name: after}, check.int8.max_drop):
                yield (
                    f"int8 graph, domain {name}: its export noted {before:.1%} before and "
                    f"{after:.1%} after, and allowed a loss of {check.int8.max_drop:g} points"
                )


def _run(bundle: Bundle, precision: Precision, probe: Probe) -> tuple[np.ndarray, np.ndarray]:
    """`logits [N, Cmax]` of the mixed probe, and of the same images with each domain alone.

    Domains with weights of their own have no mixed form: both are of each domain's own graph.
    """
    mixed = _mixed(bundle, precision, probe)
    if bundle.manifest.own_weights:
        return mixed, mixed
    graph = bundle.held_graph(precision).read()
    if bundle.manifest.adapters:  # which fold into the filters of a domain's own graph
        packs = [bundle.pack(name) for name in bundle.domains]
        return mixed, answer_alone(graph, form_of(bundle, precision), packs, probe)
    session, alone = open_graph(graph), np.full_like(mixed, -np.inf)
    for domain in range(len(bundle.domains)):
        rows = probe.domains == domain
        alone[rows] = run_graph(session, probe.only(domain))[rows]
    return mixed, alone


def _mixed(bundle: Bundle, precision: Precision, probe: Probe) -> np.ndarray:
    """`logits [N, Cmax]` of the probe, or of each domain's own graph where they have no mixed."""
    graph = bundle.held_graph(precision).read()
    if bundle.manifest.own_weights:
        packs = [bundle.pack(name) for name in bundle.domains]
        return answer_alone(graph, form_of(bundle, precision), packs, probe)
    return run_graph(open_graph(graph), probe)


def _masked_logits(loaded: Checkpoint, names: tuple[str, ...], images: np.ndarray) -> np.ndarray:
    """Masked torch's logits, its domains matched to the bundle's by name."""
    known = [domain["name"] for domain in loaded.meta["domains"]]
    lacking = [name for name in names if name not in known]
    if lacking:
        raise DomainError(f"the checkpoint has no domain {lacking[0]!r}: it has {', '.join(known)}")
    rows = torch.tensor([known.index(name) for name in names])
    domains = rows[torch.arange(len(images)) % len(names)]
    logits = masked_logits(loaded.net, torch.from_numpy(images), domains)
    widest = max(loaded.net.classes[row] for row in rows)
    return logits[:, :widest]
