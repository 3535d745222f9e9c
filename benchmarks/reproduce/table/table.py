"""The rows that were run as the papers' table, each with the printed rows below it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from prunion.benchmarks.reproduce.catalogue import NETWORKS, rows_of
from prunion.benchmarks.reproduce.table.printed import (
    PRINTED,
    REFERENCES,
    PrintedRow,
    printed_beside,
)
from prunion.trainer.score import BENCHMARKS, Benchmark, Score, score

__all__ = ["listed_rows", "reproduced_table", "score_of"]

NOTHING = "–"
LEAST = 1.0  # point of S that the feature extractor must have for S_E to mean anything
Line = Mapping[str, Any]


def reproduced_table(benchmark: str, lines: Sequence[Line]) -> str:
    """All lines as Markdown: a table for each network, seeds and trials of their own.

    S is over the domains that were measured; a line below says so where some are missing.
    """
    parts = []
    for network in dict.fromkeys(line["network"] for line in lines):
        own = [line for line in lines if line["network"] == network]
        parts.append(f"## {BENCHMARKS[benchmark].title}, {network}\n\n" + _table(benchmark, own))
    return "\n\n".join(parts) if parts else "no row was run yet"


def score_of(
    benchmark: str,
    network: str,
    accuracy: Mapping[str, float],
    flop: float | None = None,
    params: float | None = None,
    feature: Mapping[str, float] | None = None,
) -> Score | None:
    """S and, with costs, S_O, S_P and S_E, over the domains that have a share of right answers.

    None where none has.

    Args:
        feature: shares of the feature extractor, which S_E is relative to where not every domain
            was measured; with all of them it is relative to the printed one.
    """
    whole = REFERENCES.get(network.split("_")[0], BENCHMARKS[benchmark])
    some = tuple(domain for domain in whole.domains if domain.name in accuracy)
    if not some:
        return None
    part = replace(whole, domains=some)
    complete = len(some) == len(whole.domains)
    if not complete and feature is not None:
        base = _s(part, feature)
        complete = base >= LEAST
        part = replace(part, baseline=base) if complete else part
    found = score(part, _percent(part, accuracy), flop, params)
    return found if complete else replace(found, s_e=None)


def listed_rows(benchmark: str, networks: Sequence[str] = ()) -> str:
    """The rows that there are, a line each."""
    lines = []
    for name in networks or NETWORKS[benchmark]:
        lines.append(f"{name}:")
        lines += [
            f"  {row.name:<18} {row.what}, {row.epochs} epochs"
            + (
                f"; printed: {beside}"
                if (beside := _sources(benchmark, row.network, row.name))
                else ""
            )
            for row in rows_of(benchmark, name).values()
        ]
    return "\n".join(lines)


def _sources(benchmark: str, network: str, row: str) -> str:
    return "; ".join(dict.fromkeys(x.source for x in printed_beside(benchmark, network, row)))


def _table(benchmark: str, lines: Sequence[Line]) -> str:
    domains = BENCHMARKS[benchmark].domains
    head = ["row", "FLOP", "Params", "without BN", *(d.short for d in domains)]
    head += ["S", "S_O", "S_P", "S_E"]
    out = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    features = {_trial(line): line["accuracy"] for line in lines if line["row"] == "feature"}
    missing: dict[str, list[str]] = defaultdict(list)
    for line in lines:
        found = score_of(
            *(benchmark, line["network"], line["accuracy"], line["flop"], line["params"]),
            features.get(_trial(line)),
        )
        out.append(_row(f"`{line['key']}`", line, _values(benchmark, line["accuracy"]), found))
        out += [_printed(x) for x in printed_beside(benchmark, line["network"], line["row"])]
        lacking = [d.short for d in domains if d.name not in line["accuracy"]]
        missing[", ".join(lacking)].append(line["key"])
    beside = {x for line in lines for x in _all_beside(benchmark, line)}
    out += [_printed(x) for x in _others(benchmark, lines[0]["network"]) if x not in beside]
    notes = [
        f"Without {names}, which add nothing to S: {len(keys)} of {len(lines)} rows."
        for names, keys in missing.items()
        if names
    ]
    watched = [line for line in lines if _of_validation(benchmark, line)]
    if watched:
        notes.append(
            f"Measured on validation images, the printed rows on test images: {len(watched)} of "
            f"{len(lines)} rows. `--final` measures on test images that have labels."
        )
    trunks = {(line.get("made_of") or {}).get("trunk", "") for line in lines}
    notes += [f"The rows start from {len(trunks)} trunks."] if len(trunks) > 1 else []
    sets: dict[str, list[str]] = defaultdict(list)
    for line in lines:
        if images := (line.get("made_of") or {}).get("images"):
            sets[json.dumps(images, sort_keys=True)].append(f"`{line['key']}`")
    if len(sets) > 1:
        notes.append(
            "The rows are of different images, and compare only with those of the same: "
            + "; ".join(", ".join(keys) for keys in sets.values())
            + "."
        )
    notes += [
        f"{x.source}, {x.title}: {x.misprint}." for x in PRINTED if x.misprint and x in beside
    ]
    return "\n".join([*out, *(f"\n{note}" for note in notes)])


def _of_validation(benchmark: str, line: Line) -> bool:
    """Whether a line's accuracies are of validation images, some of which are far easier."""
    return benchmark == "decathlon" and "final" not in line["key"].split("-")


def _all_beside(benchmark: str, line: Line) -> list[PrintedRow]:
    return printed_beside(benchmark, line["network"], line["row"])


def _others(benchmark: str, network: str) -> list[PrintedRow]:
    """Printed rows of methods that are none of ours."""
    return [x for x in PRINTED if (x.benchmark, x.network, x.row) == (benchmark, network, "")]


def _trial(line: Line) -> str:
    """What a line's figures may be held against: of the same settings, and made of the same."""
    made_of = json.dumps(line.get("made_of"), sort_keys=True)
    key: str = line["key"]
    return key.replace(f"-{line['row']}-", "-", 1) + made_of


def _row(name: str, line: Line, values: Sequence[str], found: Score | None) -> str:
    cells = [name, f"{line['flop']:.3f}", f"{line['params']:.2f}"]
    cells += [f"{line['params_without_norms']:.2f}", *values]
    scores = (found.s, found.s_o, found.s_p, found.s_e) if found else (None,) * 4
    cells += [_figure(x) for x in scores[:3]]
    return f"| {' | '.join([*cells, _figure(scores[3], 2)])} |"


def _printed(row: PrintedRow) -> str:
    cells = [f"*{row.source}: {row.title}*", _figure(row.flop, 3), _figure(row.params, 2), ""]
    cells += [f"{value:.1f}" for value in row.accuracy]
    cells += [_figure(x) for x in (row.s, row.s_o, row.s_p)]
    return f"| {' | '.join([*cells, _figure(row.s_e, 2)])} |"


def _values(benchmark: str, accuracy: Mapping[str, float]) -> list[str]:
    known = {name: f"{100 * share:.1f}" for name, share in accuracy.items()}
    return [known.get(domain.name, NOTHING) for domain in BENCHMARKS[benchmark].domains]


def _figure(value: float | None, digits: int = 0) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}"


def _percent(benchmark: Benchmark, accuracy: Mapping[str, float]) -> list[float]:
    return [100 * accuracy[domain.name] for domain in benchmark.domains]


def _s(benchmark: Benchmark, accuracy: Mapping[str, float]) -> float:
    """S of the same domains; 0 where one is missing."""
    if not all(domain.name in accuracy for domain in benchmark.domains):
        return 0.0
    return score(benchmark, _percent(benchmark, accuracy)).s
