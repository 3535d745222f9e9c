"""When sharing one network helps: groups of domains together, and each domain alone in its part.

    python -m prunion.benchmarks.learning --data DATA --weights WEIGHTS --set precision=bf16 \
        --domains flowers5,dtd10 -o ROWS.jsonl tuned-025 separate-025
    python -m prunion.benchmarks.learning.likeness ROWS.jsonl --like precision-bf16

A table for each backbone, a line for each group of domains that has both rows: the accuracy of the
union and of a network for each domain with the same parameters in all, their difference, and by how
many of the domains the channels of the union were chosen before they settled; all of the seeds that
both rows have.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from prunion.benchmarks.learning.paired import backbone_of, compare, read_rows, seed_of
from prunion.benchmarks.learning.plan.key import RowKey
from prunion.runtime.base import bits_from_hex
from prunion.runtime.cli import FilePath, OneLineCommand
from prunion.trainer.config import RECORD
from prunion.trainer.network import load_checkpoint

__all__ = ["chosen_by", "main", "table"]


def chosen_by(folder: Path) -> list[int]:
    """How many of the channels that a run kept no domain chose, how many one … all: `[D + 1]`."""
    choices = json.loads((folder / RECORD).read_text("utf-8"))["choices"]
    rows = [bits_from_hex(text, choices["units"]) for text in choices["domains"].values()]
    chosen = np.stack(rows)
    kept = load_checkpoint(folder).net.switches.amax(0).numpy() > 0
    found: list[int] = np.bincount(chosen.sum(0)[kept], minlength=len(rows) + 1).tolist()
    return found


@click.command(cls=OneLineCommand)
@click.argument("rows", type=FilePath(exists=True, path_type=Path))
@click.option("--like", default="", help="Only rows set exactly so, as their keys end.")
@click.option("--shared", default="tuned-025", show_default=True, help="The row of one network.")
@click.option("--apart", default="separate-025", show_default=True, help="A network for each.")
def main(rows: Path, like: str, shared: str, apart: str) -> None:
    """Print a table of the groups of domains in ROWS."""
    lines = read_rows(rows)
    kept = [x for x in lines if _settings(x) == like]
    backbones = {
        name: [x for x in kept if backbone_of(x) == name] for name in map(backbone_of, kept)
    }
    found = {name: text for name, own in backbones.items() if (text := table(own, shared, apart))}
    if not found:
        raise click.UsageError(
            f"{rows} has no group of domains with both {shared} and {apart}"
            + f" and exactly the settings --like '{like}'; it has "
            + ", ".join(sorted({f"'{_settings(x)}'" for x in lines}))
        )
    named = len(backbones) > 1
    click.echo("\n\n".join(f"{name}:\n\n" * named + text for name, text in found.items()))


def table(lines: Sequence[dict[str, Any]], shared: str, apart: str) -> str:
    """Markdown of one backbone's rows, groups of few domains first; empty where none has both."""
    groups: dict[tuple[str, ...], dict[str, list[dict[str, Any]]]] = {}
    for line in lines:
        group = groups.setdefault(tuple(line["accuracy"]), {})
        group.setdefault(RowKey.of(line).row, []).append(line)
    head = "| domains | together | apart | sharing is worth | chosen by all | by one | by none |"
    out = [head, "|" + " --- |" * 7]
    for domains, rows in sorted(groups.items(), key=lambda item: (len(item[0]), item[0])):
        if shared not in rows or apart not in rows:
            continue
        seeds = [{seed_of(x) for x in rows[n] if x.get("right")} for n in (shared, apart)]
        common = seeds[0] & seeds[1]
        if common:  # else the two means beside their difference would be of other seeds
            rows = {name: [x for x in own if seed_of(x) in common] for name, own in rows.items()}
        worth = compare(rows[shared], rows[apart])
        cells = [", ".join(domains) if len(domains) < 5 else f"all {len(domains)}"]
        cells += [f"{100 * _mean(rows[name]):.2f}" for name in (shared, apart)]
        cells.append(f"{100 * worth.mean:+.2f} {worth.interval}" if worth else "no seed in common")
        counts = [line["chosen_by"] for line in rows[shared] if line.get("chosen_by")]
        shares = np.mean([np.array(c) / sum(c) for c in counts], axis=0) if counts else None
        cells += ["", "", ""] if shares is None else [f"{shares[k]:.0%}" for k in (-1, 1, 0)]
        out.append("| " + " | ".join(cells) + " |")
    return "\n".join(out) if len(out) > 2 else ""


def _settings(line: dict[str, Any]) -> str:
    """How a row was set, without the domains that it names."""
    extra = RowKey.of(line).extra
    domains = "-".join(line["accuracy"])
    for named in (domains, "all"):
        if extra == named or extra.startswith(f"{named}."):
            return extra[len(named) + 1 :]
    return extra


def _mean(lines: Sequence[dict[str, Any]]) -> float:
    return statistics.mean(float(line["mean"]) for line in lines)


if __name__ == "__main__":
    main()
