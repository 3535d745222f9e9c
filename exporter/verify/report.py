"""`prunion verify`: everything a bundle claims, found out again from its files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import onnx

from prunion.exporter.verify.budget import check_budget
from prunion.exporter.verify.claims import check_against, check_claims, check_told
from prunion.exporter.verify.compare import check_noted, compare_graphs
from prunion.exporter.verify.cut import compare_cut
from prunion.exporter.verify.files import (
    check_graph,
    check_listed,
    check_packs,
    check_tables,
    check_trunk,
    check_unlisted,
)
from prunion.exporter.verify.findings import Disagreement, Findings
from prunion.exporter.verify.int8_again import measure_int8_again
from prunion.exporter.verify.own_parts import check_own_parts
from prunion.exporter.verify.units import check_units
from prunion.exporter.verify.variants import check_variant
from prunion.runtime.base import PRECISIONS, one_line
from prunion.runtime.bundle import Bundle, open_bundle
from prunion.runtime.errors import BundleError
from prunion.runtime.graph import form_of
from prunion.trainer.network import load_checkpoint
from prunion.trainer.processes import keep_to_quota

__all__ = ["Disagreement", "VerifyReport", "verify_bundle"]


@dataclass(frozen=True)
class VerifyReport:
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


def verify_bundle(
    bundle: Bundle | Path | str, *, against: Path | str | None = None
) -> VerifyReport:
    """Check a bundle's files against each other, and its graphs in ONNX Runtime.

    Hashes, the trunk's too; onnx's full checker; widths, parameters and MACs counted again; the
    bank's size and what rounding keeps; the unit table's slots; every pack against the default
    tables; each domain alone against a mixed batch, and cut to its channels against the whole
    graph; every variant against the fp32 graph; and with `against` (a checkpoint) all of them
    against masked torch, the INT8 graph's accuracy where the run's images are there, and what only
    the checkpoint knows: the backbone's counts and widths, the budget, how images are prepared,
    classes, accuracies, which network it was, what each pack holds, and the trunk's weights. The
    bundle's name, `paper`, `params.own`, the errors that its export noted and the rest of
    `provenance` are not checked.

    Of an open bundle the files are opened anew, and another bundle in its place is a problem.

    Raises:
        CheckpointError: `against` cannot be read.
    """
    place = str(bundle.place if isinstance(bundle, Bundle) else bundle)
    try:
        opened = bundle.again() if isinstance(bundle, Bundle) else open_bundle(bundle)
    except BundleError as exc:
        return VerifyReport(place, (), (str(exc),), ())
    found = Findings()
    for check in (check_unlisted, check_listed, check_told, check_budget, check_noted):
        found.problems.extend(_guarded("", partial(check, opened)))
    found.problems.extend(_guarded("manifest", partial(check_claims, opened)))
    sound = []
    for variant in opened.manifest.graphs:
        problems = list(_guarded(f"{variant} graph", partial(_static, opened, variant)))
        found.problems.extend(problems)
        if not problems:
            sound.append(variant)
    keep_to_quota()
    loaded = None if against is None else load_checkpoint(against)
    if loaded is not None and against is not None:
        found.problems.extend(_guarded("manifest", partial(check_against, opened, loaded)))
        own = partial(check_own_parts, opened, against, loaded)
        found.problems.extend(_guarded("", own))
    found = _with(found, partial(compare_graphs, opened, sound, loaded))
    answered = {x.graph for x in found.compared}
    runs = [x for x in sound if x in answered]
    found = _with(found, partial(compare_cut, opened, runs))
    found.problems.extend(
        f"{x.graph} graph, domain {x.domain}: differs from {x.against} by {x.error:.2e} of the "
        f"largest logit, more than {x.tolerance:.0e}"
        for x in found.compared
        if not x.passed
    )
    if "fp32" in runs:
        found.problems.extend(_guarded("fp32 graph", partial(check_units, opened)))
    for variant in sound:
        again = partial(check_variant, opened, variant, sound)
        found.problems.extend(_guarded(f"{variant} graph", again))
    found = _with(found, partial(measure_int8_again, opened, answered, loaded))
    return VerifyReport(
        place,
        tuple(opened.manifest.graphs),
        tuple(found.problems),
        tuple(found.compared),
        tuple(found.notes),
    )


def _static(bundle: Bundle, variant: str) -> Iterator[str]:
    form_of(bundle, PRECISIONS[variant])  # nothing runs that no bundle's graph may hold
    model = onnx.load_from_string(bundle.held_graph(variant).read())
    onnx.checker.check_model(model, full_check=True)
    yield from check_graph(bundle, model)
    yield from check_tables(bundle, model)
    yield from check_packs(bundle, model)
    if variant == "fp32":
        yield from check_trunk(bundle, model)


def _guarded(place: str, check: Callable[[], Iterator[str]]) -> Iterator[str]:
    """A check's findings, and whatever it raises as one more."""
    before = f"{place}: " if place else ""
    try:
        yield from (f"{before}{problem}" for problem in check())
    except Exception as exc:  # a damaged file makes onnx and numpy raise anything
        yield f"{before}{one_line(exc)}"


def _with(found: Findings, check: Callable[[], Findings]) -> Findings:
    """`found` and what a check adds; where it raises, one problem more, unless it is told."""
    try:
        return found + check()
    except Exception as exc:  # such as that of a pack that is not what the manifest says
        told = any(problem.endswith(one_line(exc)) for problem in found.problems)
        return found if told else found + Findings(problems=[one_line(exc)])
