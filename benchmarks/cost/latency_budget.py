"""`python -m prunion.benchmarks.cost.latency_budget`: is a latency budget kept by the clock?"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from prunion.exporter.bundle import export_untrained
from prunion.runtime.backends import SessionOptions, check_backend, make_session
from prunion.runtime.base import time_interleaved, write_json
from prunion.runtime.bundle import UnitTable, open_bundle, write_profile
from prunion.runtime.cli import FilePath, OneLineCommand, seconds_option
from prunion.runtime.graph import pin_pack
from prunion.runtime.measure import profile_bundle
from prunion.trainer.backbone import load_backbone
from prunion.trainer.channels import find_units
from prunion.trainer.config import (
    BackboneConfig,
    BudgetConfig,
    DomainConfig,
    InputConfig,
    RunConfig,
)
from prunion.trainer.cost import latency_pricer, make_budget, select_union

__all__ = ["BudgetRow", "latency_budget_command", "latency_rows"]

NETWORKS = {"resnet18:layer3": 64, "mobilenet_v2": 96}
FULL = "full"
GOAL = 0.10


@dataclass(frozen=True)
class BudgetRow:
    """One union under one budget, cut and timed beside the full network.

    Attributes:
        union: `random` (a random order of channels) or `layered` (whole layers matter more or
            less, as importance has it).
        predicted_ms: by the profile; `measured_ms` is the least time of the pinned, sliced
            graph and `median_ms` its median.
        share: least time over the full network's.
    """

    network: str
    union: str
    budget: float
    macs: float
    predicted_ms: float
    measured_ms: float
    median_ms: float
    share: float

    @property
    def error(self) -> float:
        """Measured over predicted, less 1: above 0 the budget was promised too lightly."""
        return self.measured_ms / self.predicted_ms - 1


@click.command(cls=OneLineCommand)
@click.option("--only", default=",".join(NETWORKS), show_default=True, help="NAME or NAME:CUT, …")
@click.option("--shares", default="0.75,0.5,0.25", show_default=True)
@click.option("--backend", default="cpu", show_default=True)
@click.option("--batch", default=1, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--round-to", default=16, show_default=True)
@seconds_option(1.0, "Per measured network.")
@click.option("--json", "path", type=FilePath(dir_okay=False))
def latency_budget_command(
    only: str,
    shares: str,
    backend: str,
    batch: int,
    threads: int,
    round_to: int,
    seconds: float,
    path: str | None,
) -> None:
    """Profile untrained networks, cut unions to latency budgets, and measure what came out."""
    torch.set_num_threads(threads)
    titles = "network union budget MACs predicted-ms least-ms median-ms share error".split()
    print(f"| {' | '.join(titles)} |\n" + "| --- " * len(titles) + "|")
    rows: list[BudgetRow] = []
    options = SessionOptions(check_backend(backend), threads, share_arena=False)
    for name in only.split(","):
        budgets = [float(share) for share in shares.split(",")]
        for row in latency_rows(name, budgets, options, batch, round_to, seconds):
            rows.append(row)
            print(_markdown(row), flush=True)
    if path:
        write_json(path, [asdict(row) for row in rows])
    worst = max(rows, key=lambda row: abs(row.error))
    print(f"\nlargest error {worst.error:+.1%} (goal {GOAL:.0%})")


def latency_rows(
    name: str,
    budgets: list[float],
    options: SessionOptions,
    batch: int = 1,
    round_to: int = 16,
    seconds: float = 1.0,
) -> list[BudgetRow]:
    """Profile one network, then time a random and a layered union for every budget."""
    own, _, cut = name.partition(":")
    side = NETWORKS.get(name, 96)
    backbone = BackboneConfig(own, weights="none", cut=cut or None)
    domain = DomainConfig("probe", train=("probe",), test=("probe",))
    run = RunConfig(
        backbone, BudgetConfig(1.0, round_to=round_to), (domain,), InputConfig((side, side))
    )
    units = find_units(load_backbone(backbone, side, side, weights=False))
    with tempfile.TemporaryDirectory() as folder:
        probe, file = Path(folder) / "probe.prunion", Path(folder) / "device.json"
        export_untrained(run, probe)
        bundle = open_bundle(probe)
        threads = options.threads or 1
        profile = profile_bundle(bundle, backend=options.backend, batch=batch, threads=threads)
        write_profile(file, profile)
        pricer = latency_pricer(file, units.table)
        everything = np.ones(units.table.count, dtype=bool)
        unions = {FULL: everything}
        for kind, score in _scores(units.table).items():
            for limit in budgets:
                config = BudgetConfig(limit, "latency", round_to, str(file))
                budget = make_budget(config, pricer)
                unions[f"{kind} {limit}"] = select_union(score, budget)
        pack, table = bundle.pack(bundle.domains[0]), bundle.unit_table()
        graphs = {k: pin_pack(bundle.graph(), pack, table, alive) for k, alive in unions.items()}
        shape = (batch, 3, side, side)
        calls = {key: _call(graph, shape, options) for key, graph in graphs.items()}
    times = time_interleaved(calls, seconds)
    full = times.pop(FULL)
    return [
        BudgetRow(
            name,
            key.split()[0],
            float(key.split()[1]),
            table.macs(unions[key]) / table.macs(everything),
            pricer.of(unions[key]),
            timing.min_ms,
            timing.p50_ms,
            timing.min_ms / full.min_ms,
        )
        for key, timing in times.items()
    ]


def _scores(table: UnitTable) -> dict[str, np.ndarray]:
    """What each channel is worth `[U]`, in two ways."""
    random = np.random.default_rng(7)
    plain = random.random(table.count)
    layered = plain.copy()
    for members, factor in zip(
        table.widths, random.lognormal(0, 0.7, len(table.widths)), strict=True
    ):
        layered[members] *= factor
    return {"random": plain, "layered": layered}


def _call(graph: bytes, shape: tuple[int, ...], options: SessionOptions) -> Callable[[], Any]:
    session = make_session(graph, options, {"image"})
    image = np.random.default_rng(0).standard_normal(shape, np.float32)
    return lambda: session.run(["logits"], {"image": image})


def _markdown(row: BudgetRow) -> str:
    return (
        f"| {row.network} | {row.union} | {row.budget:g} | {row.macs:.3f} "
        f"| {row.predicted_ms:.3f} | {row.measured_ms:.3f} | {row.median_ms:.3f} "
        f"| {row.share:.3f} | {row.error:+.1%} |"
    )


if __name__ == "__main__":
    latency_budget_command()
