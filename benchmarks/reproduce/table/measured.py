"""What a row answered: its own domains, and the source, whose network is the unpruned trunk."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from prunion.benchmarks.reproduce.archives import BenchmarkImages
from prunion.benchmarks.reproduce.catalogue import ReproducedRow
from prunion.benchmarks.reproduce.settings import Reproduction
from prunion.benchmarks.reproduce.sources import TrunkSource

__all__ = ["measured_accuracy"]

log = logging.getLogger(__name__)


def measured_accuracy(
    asked: Reproduction,
    row: ReproducedRow,
    domains: Sequence[BenchmarkImages],
    own: Mapping[str, float],
    trunk: TrunkSource,
    answers: Mapping[str, Sequence[str]],
) -> dict[str, float]:
    """Share of right answers by domain; the source's is the unpruned trunk's, as in the papers.

    PackNet has none: it gives up a part of the trunk, which the paper then trains again on its
    source. Where training took the validation images too, a domain without labels of test images
    has none.

    Args:
        answers: the trunk's for the source's unlabelled images.
    """
    known = trunk.accuracy
    if asked.final:
        known = next((_right(x, answers) for x in domains if x.name == asked.source), None)
    given = asked.source_accuracy.get(row.network)
    if given is not None and known is not None:
        told = "row %s: its trunk tells its accuracy on %s, which is taken in place of %g %%"
        log.warning(told, row.name, asked.source, given)
    known = given / 100 if known is None and given is not None else known
    tested = {x.name for x in domains if x.test or not asked.final}
    found = {x.name: own[x.name] for x in domains if x.name in own and x.name in tested}
    return found if known is None or row.method == "packnet" else {asked.source: known, **found}


def _right(domain: BenchmarkImages, answers: Mapping[str, Sequence[str]]) -> float | None:
    """Share of right answers to the benchmark's test images; None where nobody knows.

    A trial answers a few images, and may know the labels of others.
    """
    if domain.name not in answers:
        return None
    pairs = zip(domain.unlabelled, answers[domain.name], strict=True)
    right = [domain.truth[x.number] == answer for x, answer in pairs if x.number in domain.truth]
    return sum(right) / len(right) if right else None
