"""`python -m prunion.benchmarks.cost.slim_latency`: does latency follow the MACs that were cut?"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import click
import numpy as np
import onnx
import torch

from prunion.benchmarks.backbones import domain_net
from prunion.exporter.graph import onnx_graph
from prunion.exporter.slim import slim_network
from prunion.runtime.backends import SessionOptions, mixed_session, pinned_session
from prunion.runtime.base import time_interleaved, write_json
from prunion.runtime.cli import FilePath, OneLineCommand, seconds_option
from prunion.trainer.config import BackboneConfig, BackboneSource, BudgetConfig, BudgetKind
from prunion.trainer.cost import make_budget, make_pricer, select_union
from prunion.trainer.network import DomainNet

__all__ = ["SlimRow", "latency_rows", "slim_latency_command"]

NETWORKS = {"resnet50": 224, "prunion:wrn28_4": 64}
FULL = "full"
GOAL = 1.25


@dataclass(frozen=True)
class SlimRow:
    """One pruned network beside the full one.

    Attributes:
        budget: kind and share, `macs 0.5`.
        form: `pinned` to one domain, or `mixed` with a domain per image.
        latency: median of the pruned network over the full one's, timed interleaved.
    """

    network: str
    side: int
    batch: int
    form: str
    budget: str
    params: float
    macs: float
    full_ms: float
    pruned_ms: float
    latency: float

    @property
    def over_macs(self) -> float:
        """Latency ratio over MACs ratio: 1 is all that was promised, above 1.25 is too little."""
        return self.latency / self.macs


@click.command(cls=OneLineCommand)
@click.option("--only", default=",".join(NETWORKS), show_default=True)
@click.option("--kinds", default="params,macs", show_default=True)
@click.option("--shares", default="0.5,0.25", show_default=True)
@click.option("--batches", default="1,8", show_default=True)
@click.option("--forms", default="pinned,mixed", show_default=True)
@click.option("--round-to", default=16, show_default=True)
@click.option("--threads", default=1, show_default=True)
@seconds_option(3.0, "Per case.")
@click.option("--json", "path", type=FilePath(dir_okay=False))
def slim_latency_command(
    only: str,
    kinds: str,
    shares: str,
    batches: str,
    forms: str,
    round_to: int,
    threads: int,
    seconds: float,
    path: str | None,
) -> None:
    """ONNX Runtime CPU: latency ratio to the unpruned network against the MACs ratio."""
    torch.set_num_threads(threads)
    budgets = [(kind, float(share)) for kind in kinds.split(",") for share in shares.split(",")]
    rows: list[SlimRow] = []
    titles = "network batch form budget params MACs full-ms pruned-ms latency ÷MACs".split()
    print(f"| {' | '.join(titles)} |\n" + "| --- " * len(titles) + "|")
    for name in only.split(","):
        sizes = [int(batch) for batch in batches.split(",")]
        for row in latency_rows(name, budgets, sizes, forms.split(","), round_to, threads, seconds):
            rows.append(row)
            print(_markdown(row), flush=True)
    if path:
        write_json(path, [asdict(row) for row in rows])
    worst = max(row.over_macs for row in rows)
    print(f"\nworst latency ratio: {worst:.2f} × the MACs ratio (goal {GOAL})")


def latency_rows(
    name: str,
    budgets: list[tuple[str, float]],
    batches: list[int],
    forms: list[str],
    round_to: int,
    threads: int,
    seconds: float,
) -> list[SlimRow]:
    """Time every pruned network beside the full one, one batch size and form at a time."""
    source, _, own = name.rpartition(":")
    side = NETWORKS.get(name, 96)
    config = BackboneConfig(own, cast(BackboneSource, source or "torchvision"), weights="none")
    net = domain_net(config, side, (10, 10))
    options = SessionOptions("cpu", threads, share_arena=False)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        shares, graphs = _graphs(net, side, budgets, round_to, Path(folder))
        for batch in batches:
            for form in forms:
                calls = {key: _call(graphs[key], form, batch, side, options) for key in graphs}
                times = time_interleaved(calls, seconds)
                full = times[FULL].p50_ms
                for key, (params, macs) in shares.items():
                    own_ms = times[key].p50_ms
                    row = (name, side, batch, form, key, params, macs, full, own_ms, own_ms / full)
                    rows.append(SlimRow(*row))
    return rows


def _graphs(
    net: DomainNet, side: int, budgets: list[tuple[str, float]], round_to: int, folder: Path
) -> tuple[dict[str, tuple[float, float]], dict[str, Path]]:
    """The full graph and one per budget; params and MACs of each as shares of the full."""
    table, random = net.units.table, np.random.default_rng(0)
    everything = np.ones(table.count, dtype=bool)
    score = random.random(table.count)
    shares, graphs = {}, {FULL: folder / "full.onnx"}
    onnx.save(onnx_graph(slim_network(net), side, side), graphs[FULL])
    for kind, limit in budgets:
        config = BudgetConfig(limit, cast(BudgetKind, kind), round_to)
        budget = make_budget(config, make_pricer(config, net))
        alive = select_union(score, budget)
        net.switches.copy_(torch.from_numpy(alive).float().expand_as(net.switches))
        key = f"{kind} {limit:g}"
        graphs[key] = folder / f"{kind}{limit:g}.onnx"
        onnx.save(onnx_graph(slim_network(net), side, side), graphs[key])
        params = table.params(alive) / table.params(everything)
        shares[key] = (params, table.macs(alive) / table.macs(everything))
    return shares, graphs


def _call(
    graph: Path, form: str, batch: int, side: int, options: SessionOptions
) -> Callable[[], Any]:
    feeds: dict[str, np.ndarray] = {}
    feeds["image"] = np.random.default_rng(0).standard_normal((batch, 3, side, side), np.float32)
    if form == "pinned":
        session = pinned_session(graph, 0, options)
    else:
        session = mixed_session(graph, options)
        feeds["domain"] = np.arange(batch, dtype=np.int64) % 2
    return lambda: session.run(["logits"], feeds)


def _markdown(row: SlimRow) -> str:
    return (
        f"| {row.network} | {row.batch} | {row.form} | {row.budget} | {row.params:.3f} "
        f"| {row.macs:.3f} | {row.full_ms:.1f} | {row.pruned_ms:.1f} | {row.latency:.3f} "
        f"| {row.over_macs:.2f} |"
    )


if __name__ == "__main__":
    slim_latency_command()
