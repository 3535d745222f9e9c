"""What rows' bundles cost: bytes, and what an image, eight and a mixed eight take, in turn.

    python -m prunion.benchmarks.learning.latency runs/learning -o latency.jsonl

The milliseconds in a row's `account` are of a run of its own, so those of two rows are not to be
compared. Here all bundles are loaded at once and answer in turn, in blocks (`time_blocks`), and a
bundle's ratio to one of them is of blocks of the same round, with its 95 % interval. A method that
keeps every channel has the same widths however long it was trained, so a short run will do for it.

Milliseconds are of whatever the runtime itself would answer with: `Model` makes the sessions, and
takes a mixed batch apart where its plan says so or domains have weights of their own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import numpy as np

from prunion.benchmarks.learning.plan.key import row_of
from prunion.exporter.verify import VerifyReport
from prunion.runtime.base import machine_facts, time_blocks, time_interleaved, warm_up
from prunion.runtime.bundle import Manifest, open_bundle
from prunion.runtime.cli import FilePath, OneLineCommand, seconds_option
from prunion.runtime.measure import compare_blocks
from prunion.runtime.model import Model, load
from prunion.trainer.methods import NUMBER_BITS

__all__ = [
    "bundle_account",
    "bundle_bytes",
    "cases_of",
    "find_bundles",
    "main",
    "measure",
    "table",
    "together",
]

BUNDLE = "model.prunion"  # in the folder of a row
WARM_UP_S = 1.0  # at most, of each case
BATCH = 8
SECONDS = 1.0  # for each case


@click.command(cls=OneLineCommand)
@click.argument("paths", nargs=-1, required=True, type=FilePath(exists=True, path_type=Path))
@click.option("--reference", default="frozen-all", show_default=True, help="A name of a bundle.")
@seconds_option(3.0, "Of each case.")
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
    names = [row_of(key) for key in keys]
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


def bundle_account(
    bundle: Path, report: VerifyReport, threads: int, *, own_norms: bool, seconds: float = SECONDS
) -> dict[str, Any]:
    """The part `account` of a row.

    `params` and `flop` are the papers' columns, `params_one_norm` the former where a table counts
    one BatchNorm for all domains; `flop` is theoretical: operations of a domain's own weights, the
    mean over domains. `error` is the largest of the fp32 graph from the trained network, of the
    largest logit. `ms` has for each case the median and the least.

    Args:
        report: of `verify_bundle` against the trained network.
        own_norms: whether each domain has a BatchNorm of its own.
    """
    manifest = open_bundle(bundle).manifest
    paper = manifest.paper
    assert paper is not None, "export writes it"
    more = (len(manifest.domains) - 1) * NUMBER_BITS * _norm_numbers(manifest) if own_norms else 0
    errors = [x.error for x in report.compared if (x.graph, x.against) == ("fp32", "masked torch")]
    return {
        "params": paper.params,
        "params_one_norm": (paper.bits_exported - more) / paper.bits_backbone,
        "flop": paper.flop,
        "flop_union": paper.flop_union,
        "bytes": bundle_bytes(bundle),
        "error": max(errors),
        "ms": _milliseconds(bundle, threads, seconds),
    }


def bundle_bytes(bundle: Path) -> dict[str, int]:
    """Bytes of a bundle's fp32 graph, of all packs, and of what its domains' weights share."""
    manifest = open_bundle(bundle).manifest
    sizes = {name: (bundle / name).stat().st_size for name in manifest.files}
    return {
        "graph": sizes[manifest.graphs["fp32"]],
        "packs": sum(sizes[domain.pack] for domain in manifest.domains),
        "shared": sizes[manifest.own_weights] if manifest.own_weights else 0,
    }


def together(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The account of several domains' own bundles: files add up, an image runs through one."""
    count = len(parts)
    cases = [case for case in parts[0]["ms"] if not case.startswith("mixed")]
    return {
        **{key: sum(x[key] for x in parts) for key in ("params", "params_one_norm")},
        **{key: sum(x[key] for x in parts) / count for key in ("flop", "flop_union")},
        "bytes": {key: sum(x["bytes"][key] for x in parts) for key in parts[0]["bytes"]},
        "error": max(x["error"] for x in parts),
        "ms": {case: np.mean([x["ms"][case] for x in parts], axis=0).tolist() for case in cases},
    }


def cases_of(model: Model) -> dict[str, Callable[[], object]]:
    """Calls of an image of one domain, a batch of one domain and, of several, a mixed batch."""
    images = model.sessions.form.noise(BATCH)
    mixed = np.arange(BATCH) % len(model.domains)

    def answer(count: int, rows: np.ndarray) -> Callable[[], object]:
        return lambda: model.logits(images[:count], rows[:count])

    one = np.zeros(BATCH, np.int64)
    cases = {"one": answer(1, one), f"one x {BATCH}": answer(BATCH, one)}
    if len(model.domains) > 1:
        cases[f"mixed x {BATCH}"] = answer(BATCH, mixed)
    return cases


def _norm_numbers(manifest: Manifest) -> int:
    """Scales and shifts in a row of the bank; a gate is a switch, and no number."""
    return sum(entry.size for entry in manifest.bank if entry.kind in ("scale", "shift"))


def _milliseconds(bundle: Path, threads: int, seconds: float) -> dict[str, list[float]]:
    """`[median, least]` of an image of one domain, a batch of one domain, and a mixed batch."""
    with load(bundle, "cpu", threads=threads) as model:
        timings = time_interleaved(cases_of(model), seconds=seconds)
    return {name: [timing.p50_ms, timing.min_ms] for name, timing in timings.items()}


if __name__ == "__main__":
    main()
