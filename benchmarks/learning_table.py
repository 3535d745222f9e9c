"""The learning table as Markdown, from the rows that were run.

python -m prunion.benchmarks.learning_table benchmarks/results/learning.jsonl
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import click

from prunion.benchmarks.learning import ROWS

__all__ = ["main", "table"]


@click.command()
@click.argument("rows", type=click.Path(exists=True, path_type=Path))
def main(rows: Path) -> None:
    """Print one table for each backbone and number of epochs."""
    lines = [json.loads(line) for line in rows.read_text("utf-8").splitlines()]
    for (backbone, extra), group in _groups(lines).items():
        click.echo(f"\n{' '.join(filter(None, (backbone, *extra)))}:\n")
        click.echo(table(group))


def table(lines: list[dict[str, Any]]) -> str:
    """Rows of one backbone, seeds of a row together, in the order of `learning.ROWS`."""
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


def _groups(
    lines: list[dict[str, Any]],
) -> dict[tuple[str, tuple[str, ...]], list[dict[str, Any]]]:
    groups: dict[tuple[str, tuple[str, ...]], list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        backbone, _, _, *extra = line["key"].split(".")
        groups[backbone, tuple(extra)].append(line)
    return groups


def _name(line: dict[str, Any]) -> str:
    return str(line["key"].split(".")[1])


def _seed(line: dict[str, Any]) -> str:
    return str(line["key"].split(".")[2])


def _percent(values: list[float], digits: int = 1) -> str:
    return f"{100 * statistics.mean(values):.{digits}f}"


def _spread(values: list[float]) -> str:
    if len(values) < 2:
        return ""
    return f" ({100 * min(values):.2f} … {100 * max(values):.2f})"


def _largest(runs: list[dict[str, Any]], key: str) -> str:
    return f"{max(run[key] for run in runs):.4f}"


def _lost(name: str, runs: list[dict[str, Any]], lines: list[dict[str, Any]]) -> str:
    """Points of the mean below every channel on, the same kind of trunk and the same seed."""
    reference = f"{ROWS[name].train['trunk']}-all"
    whole = {_seed(line): line["mean"] for line in lines if _name(line) == reference}
    lost = [whole[_seed(run)] - run["mean"] for run in runs if _seed(run) in whole]
    return _percent(lost, 2) + _spread(lost) if lost and name != reference else ""


if __name__ == "__main__":
    main()
