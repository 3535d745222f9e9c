"""`python -m prunion.benchmarks.cost.against`: a pruned bundle beside what one would run instead.

Random weights, real shapes. A row is one network, share of parameters and number of domains; rows
that the output file has already are not measured again, so that a run that was stopped goes on.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from prunion.benchmarks.cost.asked import check_asked
from prunion.benchmarks.random_bundle import random_bundle
from prunion.exporter.bundle import write_torch_pruned, write_unpruned_of
from prunion.runtime.bundle import open_bundle
from prunion.runtime.cli import FilePath, OneLineCommand, seconds_option
from prunion.runtime.measure import bench

__all__ = ["CASES", "Case", "claim_lines", "measure", "table_lines"]

BATCHES = (1, 8)
MIB = 2**20


@dataclass(frozen=True)
class Case:
    """One row: `share` is what the union keeps of the parameters, `against` bench's rivals."""

    network: str
    source: str
    side: int
    share: float
    domains: int
    against: tuple[str, ...]

    @property
    def name(self) -> str:
        """What the row is called in the file."""
        return f"{self.network} {self.side} px, {self.share:g}, {self.domains} domains"


ALL = ("specialised", "backbone", "separate", "separate-pruned")
NETWORKS = (("tf_efficientnet_lite0", "timm", 96), ("resnet50", "torchvision", 224))
CASES = tuple(
    Case(*network, share, domains, against)
    for network in NETWORKS
    for share, domains, against in ((0.25, 10, ALL), (0.5, 10, ALL), (0.25, 6, ("separate",)))
)


def measure(case: Case, seconds: float, threads: int, classes: int = 50) -> dict[str, Any]:
    """Bench's report of one row, and the share of parameters that the bundle has."""
    # Both ends of most layers are cut, so that the parameters fall with the density's square.
    density = case.share**0.5
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def made(file: str, domains: int) -> Path:
            return random_bundle(
                folder / file,
                case.network,
                domains,
                density,
                size=case.side,
                classes=classes,
                source=case.source,
            )

        bundle, pruned = made("bundle.prunion", case.domains), {}
        unpruned = write_unpruned_of(bundle, None, folder / "unpruned.onnx")
        if "separate-pruned" in case.against:
            # With random weights one network of its size stands for all: each has its own session.
            (alone,) = write_torch_pruned(made("one.prunion", 1), None, "separate-pruned", folder)
            pruned["separate-pruned"] = [alone] * case.domains
        report = bench(
            bundle,
            batches=BATCHES,
            seconds=seconds,
            threads=threads,
            against=case.against,
            unpruned=unpruned,
            pruned=pruned,
        )
        params = open_bundle(bundle).manifest.params
    left = params["exported"] / params["backbone"]
    return {"case": case.name, "share": left, "report": report.to_json()}


def table_lines(row: dict[str, Any]) -> Iterator[str]:
    """A row as a table in Markdown."""
    report = row["report"]
    yield f"\n{row['case']} (has {row['share']:.3f} of the parameters)\n"
    yield "| | batch | p50 ms | images/s | over mixed | peak memory MiB | file bytes |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    memory = {x["session"]: _memory(x) for x in report["fresh"]}
    ratios = {(x["session"], x["against"], x["batch"]): x for x in report["comparisons"]}
    for x in report["rows"]:
        key = (x["session"], x["batch"])
        found = ratios.get(("mixed", *key))
        ratio = "" if found is None else _interval(found, inverse=True)
        if (own := ratios.get((x["session"], "mixed", x["batch"]))) is not None:
            ratio = _interval(own, inverse=False)
        size, peak = _bytes(report, x["session"]), memory.get(x["session"], "")
        yield (
            f"| {x['session']} | {x['batch']} | {x['timing']['p50_ms']:.3f} "
            f"| {x['images_per_second']:.1f} | {ratio} | {peak} | {size:,} |"
        )
    yield from (f"note: {note}" for note in report["notes"])


def claim_lines(row: dict[str, Any]) -> Iterator[str]:
    """The bundle over one full network for each domain, at the largest batch."""
    report, batch = row["report"], max(BATCHES)
    speed = {x["session"]: x["images_per_second"] for x in report["rows"] if x["batch"] == batch}
    memory = {x["session"]: _memory(x) for x in report["fresh"]}
    if not {"mixed", "separate"} <= speed.keys() & memory.keys():
        return
    own = max(speed[name] for name in ("mixed", "blocked") if name in speed)
    files = _bytes(report, "mixed") / _bytes(report, "separate")
    graph = report["file_bytes"]["model.onnx"] / _bytes(report, "separate")
    held = memory["mixed"] / memory["separate"]
    yield (
        f"{row['case']}: {files:.4f} (1/{1 / files:.0f}) of separate networks' file bytes "
        f"(its graph, which holds all tables that its packs have, 1/{1 / graph:.0f}), "
        f"{held:.3f} (1/{1 / held:.0f}) of their memory, {own / speed['separate']:.2f} times their "
        f"throughput on mixed batches of {batch}"
    )


def _memory(fresh: dict[str, Any]) -> int:
    """MiB at most in a fresh process, Python and packages not counted."""
    taken: int = fresh["peak_rss_bytes"] - fresh["packages_rss_bytes"]
    return round(taken / MIB)


def _bytes(report: dict[str, Any], session: str) -> int:
    """Of a rival's files, else of all of the bundle's."""
    return int(report["rival_bytes"].get(session) or sum(report["file_bytes"].values()))


def _interval(x: dict[str, Any], *, inverse: bool) -> str:
    ends = [x["ratio"], x["low"], x["high"]]
    if inverse:
        ends = [None if end is None else 1 / end for end in (x["ratio"], x["high"], x["low"])]
    told = [f"{end:.3f}" for end in ends if end is not None]
    return told[0] + (f" ({told[1]} … {told[2]})" if len(told) == 3 else "")


@click.command(cls=OneLineCommand)
@click.option("-o", "--output", required=True, type=FilePath(dir_okay=False, path_type=Path))
@click.option("--only", default="", help="Rows whose name holds this.")
@seconds_option(1.0, "For each session and batch size.")
@click.option("--threads", default=1, show_default=True)
@click.option("--classes", default=50, show_default=True, help="Of each domain.")
def main(output: Path, only: str, seconds: float, threads: int, classes: int) -> None:
    """Measure every row that OUTPUT lacks, and print all tables."""
    lines = output.read_text("utf-8").splitlines() if output.is_file() else []
    known = {row["case"]: row for row in map(json.loads, lines)}
    asked = {"seconds": seconds, "threads": threads, "classes": classes}
    wanted = {case.name for case in CASES if only in case.name}
    check_asked([x for x in known.values() if x["case"] in wanted], asked, output, key="case")
    for case in CASES:
        if case.name in wanted - known.keys():
            click.echo(f"{case.name} …", err=True)
            row = {**measure(case, seconds, threads, classes), "asked": asked}
            known[case.name] = row
            with output.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    for row in known.values():
        click.echo("\n".join(table_lines(row)))
    click.echo()
    for row in known.values():
        click.echo("\n".join(claim_lines(row)))
    if known:
        click.echo(f"\nmachine: {row['report']['machine']}")


if __name__ == "__main__":
    main()
