"""What one image, eight of one domain and a mixed eight take, of many rows' bundles in turn.

    python -m prunion.benchmarks.learning.latency runs/learning -o latency.jsonl

The milliseconds in a row's `account` are of a run of its own, so those of two rows are not to be
compared. Here all bundles are loaded at once and answer in turn, in blocks (`time_blocks`), and a
bundle's ratio to one of them is of blocks of the same round, with its 95 % interval. A method that
keeps every channel has the same widths however long it was trained, so a short run will do for it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import numpy as np

from prunion.benchmarks.learning.account import bundle_bytes, cases_of
from prunion.runtime.base import machine_facts, time_blocks, warm_up
from prunion.runtime.bundle import open_bundle
from prunion.runtime.cli import FilePath, FiniteRange, OneLineCommand
from prunion.runtime.measure import compare_blocks
from prunion.runtime.model import load

__all__ = ["find_bundles", "main", "measure", "table"]

BUNDLE = "model.prunion"  # in the folder of a row
WARM_UP_S = 1.0  # at most, of each case


@click.command(cls=OneLineCommand)
@click.argument("paths", nargs=-1, required=True, type=FilePath(exists=True, path_type=Path))
@click.option("--reference", default="frozen-all", show_default=True, help="A name of a bundle.")
@click.option(
    "--seconds",
    type=FiniteRange(0, 86400, min_open=True),
    default=3.0,
    show_default=True,
    help="Of each case.",
)
@click.option("--threads", default=1, show_default=True)
@click.option("-o", "--output", required=True, type=FilePath(path_type=Path), help="JSONL.")
def main(
    paths: tuple[Path, ...], reference: str, seconds: float, threads: int, output: Path
) -> None:
    """Time the bundles in PATHS in turn: bundles, folders of a row, or folders of such folders.

    A row's bundle is called as the row. OUTPUT is written anew, a bundle a line.
    """
    bundles = find_bundles(paths)
    if reference not in bundles:
        known = " | ".join(bundles)
        raise click.UsageError(f"no bundle is called {reference}: --reference {known}")
    lines = measure(bundles, reference, seconds, threads)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    click.echo(table(lines))


def find_bundles(paths: Sequence[Path]) -> dict[str, Path]:
    """Bundles by name: the row's in `BACKBONE.ROW.SEED…`, or the whole name where two have one.

    Raises click.UsageError where a path holds none.
    """
    found: list[Path] = []
    for path in paths:
        here = [path] if (path / "manifest.json").is_file() else []
        here = here or [x.parent for x in (path / BUNDLE / "manifest.json",) if x.is_file()]
        here = here or [x.parent for x in sorted(path.glob(f"*/{BUNDLE}/manifest.json"))]
        if not here:
            raise click.UsageError(f"{path}: neither a bundle nor a folder of runs with {BUNDLE}")
        found += here
    keys = [path.parent.name if path.name == BUNDLE else path.stem for path in found]
    names = [key.split(".")[1] if "." in key else key for key in keys]
    unique = [n if names.count(n) == 1 else k for n, k in zip(names, keys, strict=True)]
    if len(set(unique)) < len(found):
        twice = next(name for name in unique if unique.count(name) > 1)
        raise click.UsageError(f"two bundles are called {twice}: leave one out, or rename one")
    return dict(zip(unique, found, strict=True))


def measure(
    bundles: dict[str, Path], reference: str, seconds: float, threads: int
) -> list[dict[str, Any]]:
    """A line for each bundle: `ms` has the median and the least of each case, `ratio` the time
    over that of `reference` with the ends of its 95 % interval, null where rounds were too few."""
    with ExitStack() as stack:
        calls: dict[str, dict[str, Callable[[], object]]] = {}
        for name, path in bundles.items():
            model = stack.enter_context(load(path, "cpu", threads=threads, tune=True))
            calls[name] = cases_of(model)
        flat = {(n, case): call for n, cases in calls.items() for case, call in cases.items()}
        for call in flat.values():
            warm_up(call, WARM_UP_S)
        named = {f"{case}|{name}": call for (name, case), call in flat.items()}
        blocks = time_blocks(named, seconds)
    facts = machine_facts(threads)
    lines: list[dict[str, Any]] = []
    for name, path in bundles.items():
        ms, ratio = {}, {}
        for case in calls[name]:
            own = blocks[f"{case}|{name}"]
            each = np.concatenate(own)
            ms[case] = [float(np.median(each)), float(each.min())]
            if case in calls[reference]:
                theirs = blocks[f"{case}|{reference}"]
                found = compare_blocks(name, reference, len(own), own, theirs)
                ratio[case] = [found.ratio, found.low, found.high]
        paper = open_bundle(path).manifest.paper
        lines.append(
            {
                "row": name,
                "method": paper.method if paper else None,
                "against": reference,
                "ms": ms,
                "ratio": ratio,
                "bytes": bundle_bytes(path),
                "machine": facts,
            }
        )
    return lines


def table(lines: Sequence[dict[str, Any]]) -> str:
    """The lines as Markdown: medians, in brackets the ratio's interval, kilobytes."""
    cases = list(dict.fromkeys(case for line in lines for case in line["ms"]))
    against = lines[0]["against"]
    head = ["row", *(f"ms, {case} (of `{against}`'s)" for case in cases), "graph", "packs"]
    out = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for line in lines:
        cells = [f"`{line['row']}`", *(_cell(line, case) for case in cases)]
        sizes = line["bytes"]
        both = (sizes["graph"], sizes["packs"] + sizes["shared"])
        out.append("| " + " | ".join([*cells, *(f"{x / 1000:,.0f} kB" for x in both)]) + " |")
    return "\n".join(out)


def _cell(line: dict[str, Any], case: str) -> str:
    if case not in line["ms"]:
        return ""
    median = f"{line['ms'][case][0]:.2f}"
    if case not in line["ratio"] or line["row"] == line["against"]:
        return median
    ratio, low, high = line["ratio"][case]
    interval = "" if low is None else f", {low:.2f} … {high:.2f}"
    return f"{median} ({ratio:.2f}{interval})"


if __name__ == "__main__":
    main()
