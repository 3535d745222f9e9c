"""The learning table as Markdown, from the rows that were run.

python -m prunion.benchmarks.learning.table benchmarks/learning/results/random-heads/learning.jsonl
"""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from prunion.benchmarks.learning.certainty.warm_up import warm_up_notes
from prunion.benchmarks.learning.paired import compare, read_rows
from prunion.benchmarks.learning.paired import seed_of as _seed
from prunion.benchmarks.learning.plan.catalogue import ROWS, profile_of, settings_of
from prunion.benchmarks.learning.plan.key import RowKey
from prunion.runtime.cli import FilePath, OneLineCommand

__all__ = ["accounts", "goals", "main", "table"]

# Kind of trunk, budget, rows, and the most points of the mean we wanted to lose.
GOALS = (
    ("frozen", "params 0.25", ("frozen-025",), "2"),
    (
        "tuned",
        "params 0.50 / 0.25 / 0.10",
        ("tuned-050", "tuned-025", "tuned-010"),
        "0.2 / 0.7 / 2",
    ),
    ("tuned", "MACs 0.50 / 0.25", ("tuned-macs-050", "tuned-macs-025"), "0.5 / 1.5"),
)


@click.command(cls=OneLineCommand)
@click.argument("rows", type=FilePath(exists=True, path_type=Path))
def main(rows: Path) -> None:
    """Print one table for each backbone and number of epochs."""
    lines = read_rows(rows, ("params", "macs", "returned"))
    for name in sorted({_name(x) for x in lines} - ROWS.keys()):
        click.echo(f"note: {name} is no row of the plan and is left out", err=True)
    lines = [x for x in lines if _name(x) in ROWS]
    for (backbone, extra), group in _groups(lines).items():
        click.echo(f"\n{' '.join([backbone, *extra.split('.')]).strip()}:\n")
        click.echo(table(group) + "\n\n" + goals(group))
        if any("account" in line for line in group):
            click.echo("\n" + accounts(group))
        click.echo("".join(f"\n{note}\n" for note in warm_up_notes(group)), nl=False)


def table(lines: list[dict[str, Any]]) -> str:
    """Rows of one backbone, seeds of a row together, in the order of `ROWS`."""
    seeds: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        seeds[_name(line)].append(line)
    domains = list(lines[0]["accuracy"])
    head = ["row", "seeds", "params", "MACs", *domains, "mean", "lost", "returned"]
    out = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for name in (n for n in ROWS if n in seeds):
        runs = seeds[name]
        each = [_percent([run["accuracy"][d] for run in runs]) for d in domains]
        cells = [f"`{name}`", str(len(runs)), _largest(runs, "params"), _largest(runs, "macs")]
        means = [run["mean"] for run in runs]
        cells += [*each, _percent(means, 2) + _spread(means), _lost(name, runs, lines)]
        cells.append(f"{round(statistics.mean(run['returned'] for run in runs)):,}")
        out.append("| " + " | ".join(cells) + " |")
    return "\n".join(out)


def goals(lines: list[dict[str, Any]]) -> str:
    """What each kind of trunk lost, a mean over seeds, beside what we wanted to lose at most."""
    out = ["| trunk | budget | lost | the most we wanted to lose |", "| --- | --- | --- | --- |"]
    for trunk, budget, names, most in GOALS:
        lost = [_losses(n, [x for x in lines if _name(x) == n], lines) for n in names]
        shown = " / ".join(_percent(each, 2) if each else "not run" for each in lost)
        out.append(f"| {trunk} | {budget} | {shown} | {most} |")
    return "\n".join(out)


def accounts(lines: list[dict[str, Any]]) -> str:
    """What the bundles cost, a mean over seeds: the papers' columns, bytes, milliseconds."""
    known = [line for line in lines if "account" in line]
    cases = list(dict.fromkeys(case for line in known for case in line["account"]["ms"]))
    head = ["row", "accuracy", "Params", "one BatchNorm", "FLOP", "MACs", "graph", "packs"]
    head += [f"ms, {case}" for case in cases] + ["error"]
    out = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for name in (n for n in ROWS if any(_name(line) == n for line in known)):
        runs = [line for line in known if _name(line) == name]
        each = [run["account"] for run in runs]
        cells = [f"`{name}`", _percent([run["mean"] for run in runs], 2)]
        cells += [_mean(x[k] for x in each) for k in ("params", "params_one_norm", "flop")]
        cells.append(_mean(run["macs"] for run in runs))
        cells.append(f"{_kilobytes(x['bytes']['graph'] for x in each)} kB")
        own = _kilobytes(x["bytes"]["packs"] + x["bytes"]["shared"] for x in each)
        cells.append(f"{own} kB")
        cells += [_mean((x["ms"][c][0] for x in each if c in x["ms"]), 2) for c in cases]
        cells.append(f"{max(x['error'] for x in each):.1e}")
        out.append("| " + " | ".join(cells) + " |")
    return "\n".join(out)


def _mean(values: Iterable[float], digits: int = 3) -> str:
    found = list(values)
    return f"{statistics.mean(found):.{digits}f}" if found else ""


def _kilobytes(values: Iterable[float]) -> str:
    return f"{statistics.mean(values) / 1000:,.0f}"


def _groups(lines: list[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Lines by backbone and settings; one of another profile than one before it stands alone."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        key = RowKey.of(line)
        group = groups[key.backbone, settings_of(line["key"])]
        own = profile_of(line["key"])
        if any(_name(x) == _name(line) and profile_of(x["key"]) != own for x in group):
            group = groups[key.backbone, key.extra]
        group.append(line)
    for (backbone, extra), group in list(groups.items()):
        alike = groups.get((backbone, _without_tuning(extra)), group)
        if alike is not group:  # one command runs both kinds, and frozen trunks know no such key
            group[:0] = [x for x in alike if ROWS[_name(x)].train.get("trunk") == "frozen"]
    return groups


def _without_tuning(settings: str) -> str:
    """What a row whose trunk is frozen would say of the same settings; numbers may have a point."""
    return re.sub(r"(^|\.)trunk_\w+-([\d.e+-]+|\w+)(?=\.|$)", "", settings).strip(".")


def _name(line: dict[str, Any]) -> str:
    return RowKey.of(line).row


def _percent(values: list[float], digits: int = 1) -> str:
    return f"{100 * statistics.mean(values):.{digits}f}"


def _spread(values: list[float]) -> str:
    if len(values) < 2:
        return ""
    return f" ({100 * min(values):.2f} … {100 * max(values):.2f})"


def _largest(runs: list[dict[str, Any]], key: str) -> str:
    return f"{max(run[key] for run in runs):.4f}"


def _lost(name: str, runs: list[dict[str, Any]], lines: list[dict[str, Any]]) -> str:
    """Points lost, with the least and the most of the seeds, or the interval where it is known.

    An interval's points are of the same answers. Seeds that the reference lacks have no part in
    what is lost, though they have in the row's mean: then it says how many have.
    """
    lost = _losses(name, runs, lines)
    if not lost:
        return ""
    of = f", {len(lost)} of {len(runs)} seeds" if len(lost) < len(runs) else ""
    whole = [line for line in lines if _name(line) == _reference(name)]
    difference = compare(whole, runs)
    if difference and 1 < difference.seeds == len(lost):
        return f"{100 * difference.mean:.2f} {difference.interval}{of}"
    return _percent(lost, 2) + _spread(lost) + of


def _reference(name: str) -> str:
    return f"{ROWS[name].train['trunk']}-all"


def _losses(name: str, runs: list[dict[str, Any]], lines: list[dict[str, Any]]) -> list[float]:
    """How far below every channel on, the same kind of trunk and the same seed, by run."""
    reference = _reference(name)
    if name == reference:
        return []
    whole = {_seed(line): line["mean"] for line in lines if _name(line) == reference}
    return [whole[_seed(run)] - run["mean"] for run in runs if _seed(run) in whole]


if __name__ == "__main__":
    main()
