"""A bundle's graphs run in ONNX Runtime on one probe, each held against what it should equal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from prunion.exporter.bundle import answer_alone, beside_in_own
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
    run_beside,
    run_graph,
    tolerance_of,
)
from prunion.exporter.verify.findings import Disagreement, Findings
from prunion.runtime.base import PRECISIONS, Precision, arithmetic_of, listed, one_line
from prunion.runtime.bundle import Bundle
from prunion.runtime.errors import DomainError, VerificationError
from prunion.runtime.graph import form_of
from prunion.trainer.network import Checkpoint

__all__ = ["check_noted", "compare_graphs"]

# How far an image beside others may be from itself alone, by arithmetic: sums in another order
# round otherwise, and an INT8 step may fall to the other side.
BESIDE = {"fp32": TOLERANCE, "fp16": 2e-2, "int8": 0.1}
# Beside twice what the export noted of a variant: another machine's kernels round otherwise.
NOTED = {"fp32": TOLERANCE, "fp16": 1e-2, "int8": 0.1}


def compare_graphs(bundle: Bundle, graphs: list[str], loaded: Checkpoint | None) -> Findings:
    """Each image alone against mixed batches, each variant against fp32, all against torch.

    Limits are prunion's own; a manifest cannot widen them, but what its export noted narrows them.

    Args:
        graphs: keys of the manifest's `graphs`.
        loaded: a checkpoint to hold them against, or None.
    """
    shape, names = bundle.manifest.input, bundle.domains
    count, size = max(2 * len(names), 4), (shape.height, shape.width)
    probe = make_probe(count, size, shape.mean, shape.std, domains=len(names))
    flat = one_colour_probe(size, shape.mean, shape.std, domains=len(names))
    of_flat: np.ndarray | None = None
    found = Findings()
    expected: np.ndarray | None = None
    base: np.ndarray | None = None
    if loaded is not None:
        try:
            expected = _masked_logits(loaded, names, probe.images)
            of_flat = _masked_logits(loaded, names, flat.images)
        except DomainError as exc:
            found.problems.append(str(exc))
    for graph in sorted(graphs, key=lambda g: g != "fp32"):
        try:
            answers = _run(bundle, PRECISIONS[graph], probe)
            flat_answers = _mixed(bundle, PRECISIONS[graph], flat)
        except Exception as exc:  # ONNX Runtime's errors share no base but Exception
            reason = one_line(exc)
            found.problems.append(f"{graph} graph: ONNX Runtime refuses it: {reason}")
            continue
        of_flat = flat_answers if of_flat is None else of_flat
        what = f"the {graph} graph"
        try:
            check_one_colour(of_flat, flat_answers, flat, names, what)
        except VerificationError as exc:
            found.problems.append(str(exc))
        mixed, rows, limit = answers.mixed, probe.domains, _limit(bundle, graph)
        near = BESIDE[arithmetic_of(PRECISIONS[graph])]
        for against, reference, got, domains, most in (
            ("the same images alone", answers.alone, answers.beside, answers.domains, near),
            ("the mixed batch", mixed, answers.folded, rows, tolerance_of(graph)),
            ("the fp32 graph", base, mixed, rows, limit),
            ("masked torch", expected, mixed, rows, limit),
        ):
            if reference is None or got is None:
                continue
            try:
                errors = relative_errors(reference, got, domains, names, what)
            except VerificationError as exc:
                found.problems.append(f"{exc}: {against}")
                continue
            found.compared.extend(
                Disagreement(graph, d, against, e, most) for d, e in errors.items()
            )
        base = mixed if graph == "fp32" else base
    return found


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
    for account in [check.int8 for check in verified.variants.values() if check.int8]:
        for name, (before, after) in account.accuracy.items():
            if lost({name: before}, {name: after}, account.max_drop):
                yield (
                    f"int8 graph, domain {name}: its export noted {before:.1%} before and "
                    f"{after:.1%} after, and allowed a loss of {account.max_drop:g} points"
                )


def _limit(bundle: Bundle, graph: str) -> float:
    """How far a variant may be from the fp32 graph: not much further than its export noted."""
    verified, limit = bundle.manifest.verified, tolerance_of(graph)
    check = None if verified is None else verified.variants.get(graph)
    noted = None if check is None else max(check.max_relative_error.values(), default=None)
    if noted is None:
        return limit
    return min(limit, NOTED[arithmetic_of(PRECISIONS[graph])] + 2 * noted)


@dataclass(frozen=True, eq=False)
class _Answers:
    """What one graph answers.

    Attributes:
        mixed: `[N, Cmax]` of the probe, a few images at a time; of each domain's own graph where
            they have weights of their own.
        folded: the same of each domain's own graph, where adapters fold into it.
        alone: `[M, Cmax]` of images one by one, and `beside` of the same ones in batches of others.
        domains: their domains `[M]`.
    """

    mixed: np.ndarray
    folded: np.ndarray | None
    alone: np.ndarray
    beside: np.ndarray
    domains: np.ndarray


def _run(bundle: Bundle, precision: Precision, probe: Probe) -> _Answers:
    mixed, folded = _mixed(bundle, precision, probe), None
    graph, packs = bundle.held_graph(precision).read(), [bundle.pack(x) for x in bundle.domains]
    if bundle.manifest.own_weights:
        alone, beside = beside_in_own(graph, form_of(bundle, precision), packs[0], probe)
        return _Answers(mixed, None, alone, beside, np.zeros(len(alone), np.int64))
    if bundle.manifest.adapters:  # a domain's own graph rounds otherwise
        folded = answer_alone(graph, form_of(bundle, precision), packs, probe)
    session = open_graph(graph)
    rows, beside = run_beside(session, probe)
    alone = run_graph(session, probe, 1)
    return _Answers(mixed, folded, alone[rows], beside, probe.domains[rows])


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
        raise DomainError(f"the checkpoint has no domain {lacking[0]!r}: it has {listed(known)}")
    rows = torch.tensor([known.index(name) for name in names])
    domains = rows[torch.arange(len(images)) % len(names)]
    logits = masked_logits(loaded.net, torch.from_numpy(images), domains)
    widest = max(loaded.net.classes[row] for row in rows)
    return logits[:, :widest]
