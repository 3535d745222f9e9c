"""Scores of a multi-domain model: S, S_O, S_P and S_E. Needs no torch.

Equations 10 to 13 are numbered as in dos Santos, Berriel, Oliveira-Santos, Sebe and Almeida 2023,
"Budget-Aware Pruning: Handling Multiple Domains with Less Parameters", arXiv:2309.11464. S itself
is from Rebuffi, Bilen and Vedaldi 2017, "Learning multiple visual domains with residual adapters",
arXiv:1705.08045; S_O and S_P are from Berriel et al. 2019, "Budget-Aware Adapters for Multi-Domain
Learning", arXiv:1905.06242.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prunion.runtime.base import read_json
from prunion.runtime.errors import ConfigError, InputError
from prunion.trainer.config import DomainConfig
from prunion.trainer.score.tables import Benchmark, BenchmarkDomain

__all__ = ["Score", "parse_accuracies", "read_accuracies", "run_score", "score", "score_table"]

EXPONENT = 2.0  # γ of eq. 10
HIGHEST = 1000.0  # what a domain without any error earns


@dataclass(frozen=True)
class Score:
    """S and what it is made of.

    Attributes:
        s: Σ over domains of α·max(0, Err_max − Err)^γ (eq. 10), at most 1000 a domain.
        s_o: S per operation (eq. 11); None where the cost was not given, as the next two.
        s_p: S per parameter (eq. 12).
        s_e: S_O · S_P over the feature extractor's (eq. 13).
        terms: each domain's part of S, by name, in the table's order.
        s_o_union, s_e_union: S_O and S_E by the operations of the union, which a run has too. The
            papers count those of each domain's own channels, on average.
    """

    s: float
    s_o: float | None
    s_p: float | None
    s_e: float | None
    terms: dict[str, float]
    s_o_union: float | None = None
    s_e_union: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Under the papers' names: S, S_O, S_P, S_E, and `terms`; with those of the union."""
        scores = {"S": self.s, "S_O": self.s_o, "S_P": self.s_p, "S_E": self.s_e}
        union = {"S_O_union": self.s_o_union, "S_E_union": self.s_e_union}
        told = {key: value for key, value in union.items() if value is not None}
        return {**scores, **told, "terms": self.terms}


def score(
    benchmark: Benchmark,
    accuracies: Sequence[float],
    flop: float | None = None,
    params: float | None = None,
) -> Score:
    """Score a model.

    Args:
        accuracies: in percent, one for each domain of `benchmark`, in its order.
        flop: the model's operations as a multiple of the backbone's for one domain.
        params: its parameters likewise, classifiers apart.

    Raises:
        InputError: a wrong number of accuracies, one outside 0 … 100, or a cost not above zero.
    """
    _check(benchmark, accuracies)
    for name, cost in (("flop", flop), ("params", params)):
        if cost is not None and not (0 < cost < math.inf):
            raise InputError(
                f"--{name} is {cost:g}: give the cost as a multiple of the backbone's, above 0"
            )
    terms = {
        domain.name: _term(accuracy, domain.reference)
        for domain, accuracy in zip(benchmark.domains, accuracies, strict=True)
    }
    total = math.fsum(terms.values())
    per_flop = None if flop is None else total / flop
    per_param = None if params is None else total / params
    both = None
    if per_flop is not None and per_param is not None:
        both = per_flop * per_param / benchmark.baseline**2
    return Score(total, per_flop, per_param, both, terms)


def run_score(
    domains: Sequence[DomainConfig],
    accuracy: Mapping[str, float],
    *,
    macs: float,
    union_macs: float,
    params: float,
) -> Score | None:
    """S, S_O, S_P and S_E (eqs. 10 to 13), or None where domains have no `reference`.

    S_E is relative to the feature extractor, the frozen backbone with a head for each domain:
    without every domain's `feature`, or where those earn nothing, there is no S_E.

    Args:
        accuracy: share of right answers by domain, pruned.
        macs: operations of a domain's own channels as a share of the backbone's, the mean over
            domains.
        union_macs: the union's share of the backbone's.
        params: the same of the parameters.

    Raises ConfigError where `reference` or `feature` is a share of 1 in every domain.
    """
    if not all(domain.reference for domain in domains):
        return None
    for key in ("reference", "feature"):
        if 0 < max(getattr(domain, key) for domain in domains) <= 1:
            raise ConfigError(
                f"[domains.{domains[0].name}] {key} is {getattr(domains[0], key):g}, and no "
                "domain's is above 1: give percent, such as 76.2 rather than 0.762"
            )
    columns = tuple(BenchmarkDomain(d.name, d.name, d.reference) for d in domains)
    right = [100 * accuracy[d.name] for d in domains]

    def scored(percent: Sequence[float], baseline: float, **cost: float) -> Score:
        return score(Benchmark("run", "the run", columns, baseline), percent, **cost)

    features = [d.feature for d in domains]
    baseline = scored(features, 1.0).s if all(features) else 0.0
    own = scored(right, baseline or 1.0, flop=macs, params=params)
    union = scored(right, baseline or 1.0, flop=union_macs, params=params)
    own = replace(own, s_o_union=union.s_o, s_e_union=union.s_e)
    return own if baseline else replace(own, s_e=None, s_e_union=None)


def read_accuracies(path: Path | str, benchmark: Benchmark) -> list[float]:
    """Accuracies in percent from a file, in the order of `benchmark`.

    The file holds numbers between commas or spaces, a JSON list, a JSON object from domain to
    percent, what `prunion train --json` printed, or a `checkpoint.json` (shares of 1 in both).

    Raises:
        InputError: the file is missing or holds something else, or lacks a domain.
    """
    path = Path(path)
    try:
        text = path.read_text("utf-8-sig") if path.stat().st_size <= 1 << 20 else "{"
    except UnicodeDecodeError:
        text = "{"
    except OSError as exc:
        raise InputError(f"{path} cannot be read ({exc.strerror or exc}): give a file") from None
    if text.lstrip()[:1] not in ("{", "["):
        return parse_accuracies(text, str(path))
    value = read_json(path, InputError)
    if isinstance(value, list):
        return _percents([_number(item, str(path)) for item in value])
    return _by_name(value, benchmark, path)


def parse_accuracies(text: str, where: str) -> list[float]:
    """Numbers between commas, semicolons or white space."""
    parts = text.replace(",", " ").replace(";", " ").split()
    return _percents([_number(part, where) for part in parts])


def _percents(written: list[float]) -> list[float]:
    """What somebody wrote, unless it looks like shares of 1; a run may answer 0.5 % right."""
    if written and 0 < max(written) <= 1:
        raise InputError("no accuracy is above 1: give percent, such as 76.2 rather than 0.762")
    return written


def _term(accuracy: float, reference: float) -> float:
    # Rounded, since 40 % against 70 % earns nothing, and nothing is what S_E is not divided by.
    above = round(accuracy - (2 * reference - 100), 9)
    return float(HIGHEST * (max(0.0, above) / (2 * (100 - reference))) ** EXPONENT)


def _check(benchmark: Benchmark, accuracies: Sequence[float]) -> None:
    wanted = ", ".join(d.short for d in benchmark.domains)
    if len(accuracies) != len(benchmark.domains):
        raise InputError(
            f"{benchmark.title} has {len(benchmark.domains)} domains, {len(accuracies)} accuracies "
            f"are given: give one for each of {wanted}"
        )
    for domain, value in zip(benchmark.domains, accuracies, strict=True):
        if not 0 <= value <= 100:
            raise InputError(
                f"the accuracy of {domain.short} is {value:g}: give percent, from 0 to 100"
            )


def _number(value: Any, where: str) -> float:
    try:
        if isinstance(value, (bool, list, dict)):
            raise ValueError
        return float(value)
    except (TypeError, ValueError):
        shown = repr(value)[:40]
        raise InputError(f"{where} holds {shown}: give numbers in percent with commas") from None


def _by_name(value: Mapping[str, Any], benchmark: Benchmark, path: Path) -> list[float]:
    """Find every domain of a JSON object by its name, whatever its case, or its short name."""
    percent, given = _named(value)
    folded = {str(k).casefold(): v for k, v in given.items()}
    values = []
    for domain in benchmark.domains:
        keys = [k for k in (domain.name.casefold(), domain.short.casefold()) if k in folded]
        if not keys:
            raise InputError(
                f"{path} holds no accuracy of {domain.name}: name the domains as "
                + ", ".join(d.name for d in benchmark.domains)
            )
        values.append(percent * _number(folded[keys[0]], str(path)))
    return values if percent > 1 else _percents(values)


def _named(value: Mapping[str, Any]) -> tuple[float, Mapping[str, Any]]:
    """Name → accuracy and the factor to percent, of each kind of JSON object."""
    if isinstance(value.get("accuracy"), dict):
        return 100.0, value["accuracy"]
    domains = value.get("domains")
    if isinstance(domains, list) and all(isinstance(d, dict) for d in domains):
        return 100.0, {str(d.get("name")): d.get("accuracy") for d in domains}
    return 1.0, value


def score_table(benchmark: Benchmark, accuracies: Sequence[float], result: Score) -> str:
    lines = [f"{benchmark.title:<20} {'accuracy':>9} {'finetuned':>10} {'points':>8}"]
    for domain, value in zip(benchmark.domains, accuracies, strict=True):
        lines.append(
            f"{domain.name:<20} {value:>9.2f} {domain.reference:>10.2f} "
            f"{result.terms[domain.name]:>8.1f}"
        )
    parts = [
        f"{key} {number:.{2 if key == 'S_E' else 0}f}"
        for key, number in result.to_json().items()
        if isinstance(number, float)
    ]
    return "\n".join([*lines, "  ".join(parts)])
