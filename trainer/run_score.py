"""The papers' scores of a run whose domains say what their accuracy counts against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prunion.trainer.config import DomainConfig
from prunion.trainer.score import Score, score
from prunion.trainer.score_tables import Benchmark, BenchmarkDomain

__all__ = ["run_score"]


def run_score(
    domains: Sequence[DomainConfig],
    accuracy: Mapping[str, float],
    before: Mapping[str, float],
    macs: float,
    params: float,
) -> Score | None:
    """S, S_O, S_P and S_E (eqs. 10 to 13), or None where domains have no `reference`.

    Args:
        accuracy: share of right answers by domain, pruned.
        before: the same with every channel on, after warm-up. It stands for the feature extractor
            that S_E is relative to; where it is empty or earns nothing there is no S_E.
        macs, params: the union's share of the backbone's.
    """
    if not all(domain.reference for domain in domains):
        return None
    columns = tuple(BenchmarkDomain(d.name, d.name, d.reference) for d in domains)

    def scored(right: Mapping[str, float], baseline: float, **cost: float) -> Score:
        benchmark = Benchmark("run", "the run", columns, baseline)
        return score(benchmark, [100 * right[d.name] for d in domains], **cost)

    baseline = scored(before, 1.0).s if before else 0.0
    if baseline:
        return scored(accuracy, baseline, flop=macs, params=params)
    result = scored(accuracy, 1.0, flop=macs, params=params)
    return Score(result.s, result.s_o, result.s_p, None, result.terms)
