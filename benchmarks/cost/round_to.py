"""`python -m prunion.benchmarks.cost.round_to`: what multiples of channels are worth in time."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import torch

from prunion.benchmarks.backbones import domain_net
from prunion.exporter.graph import onnx_graph
from prunion.exporter.slim import slim_network
from prunion.runtime.backends import SessionOptions, check_backend, make_session, run
from prunion.runtime.base import machine_facts, time_blocks, warm_up, write_json
from prunion.runtime.cli import FilePath, OneLineCommand, seconds_option
from prunion.runtime.errors import PrunionError
from prunion.runtime.graph import pin_domain
from prunion.runtime.measure import compare_blocks
from prunion.trainer.config import BackboneConfig, BudgetConfig
from prunion.trainer.cost import counted_pricer, make_budget, select_union
from prunion.trainer.network import DomainNet

__all__ = ["Cut", "Row", "cuts_of", "rows_of"]

CLASSES = (10, 10)
WARM_UP_S, BLOCK_MS = 2.0, 60.0


@dataclass(frozen=True)
class Row:
    """One network cut to one budget of MACs with widths in multiples of `round_to`.

    Attributes:
        share: of the backbone's MACs, what was asked; `macs` and `params` what there are.
        ms: median of a call on the session of one domain.
        ratio: to the first `round_to`, with its 95 % interval `low` … `high`.
    """

    network: str
    backend: str
    side: int
    batch: int
    share: float
    round_to: int
    macs: float
    params: float
    ms: float
    ratio: float
    low: float | None
    high: float | None


@click.command(cls=OneLineCommand)
@click.option("--only", default="resnet18,mobilenet_v2", show_default=True, help="torchvision's.")
@click.option("--backends", default="cpu,openvino", show_default=True)
@click.option("--multiples", default="1,8,16,32", show_default=True)
@click.option("--shares", default="0.5,0.25", show_default=True, help="Of the MACs.")
@click.option("--side", default=96, show_default=True, help="Pixels.")
@click.option("--batches", default="1,8", show_default=True)
@click.option("--threads", default=1, show_default=True)
@seconds_option(3.0, "Per case.")
@click.option("--json", "path", type=FilePath(dir_okay=False))
def main(
    only: str,
    backends: str,
    multiples: str,
    shares: str,
    side: int,
    batches: str,
    threads: int,
    seconds: float,
    path: str | None,
) -> None:
    """Latency at one budget of MACs by the multiple that widths are kept to, interleaved."""
    torch.set_num_threads(threads)
    titles = "network backend batch MACs-asked round_to MACs params ms ratio 95-%".split()
    print(f"| {' | '.join(titles)} |\n" + "| --- " * len(titles) + "|")
    rows: list[Row] = []
    for name, asked in product(only.split(","), shares.split(",")):
        share = float(asked)
        with tempfile.TemporaryDirectory() as folder:
            config = BackboneConfig(name, weights="none")
            cuts = cuts_of(config, side, share, _whole(multiples), Path(folder))
            for backend in backends.split(","):
                options = SessionOptions(check_backend(backend), threads, share_arena=False)
                try:
                    for batch in _whole(batches):
                        made = rows_of(name, cuts, side, share, batch, options, seconds)
                        print("\n".join(map(_markdown, made)), flush=True)
                        rows += made
                except PrunionError as exc:
                    print(f"{name} on {backend} is left out: {exc}")
    print(f"\n{machine_facts(threads)}")
    if path:
        write_json(path, [asdict(row) for row in rows])


@dataclass(frozen=True)
class Cut:
    """A pruned network's graph; its MACs and parameters as shares of the backbone's."""

    graph: Path
    macs: float
    params: float


def rows_of(
    name: str,
    cuts: dict[int, Cut],
    side: int,
    share: float,
    batch: int,
    options: SessionOptions,
    seconds: float,
) -> list[Row]:
    """Time all the cuts of one network in turn, each against the first."""
    calls = {str(k): _call(cut.graph, batch, side, options) for k, cut in cuts.items()}
    for call in calls.values():
        warm_up(call, WARM_UP_S)
    blocks = time_blocks(calls, seconds, min(BLOCK_MS, seconds * 1e3 / 24))
    first = str(next(iter(cuts)))
    rows = []
    for multiple, cut in cuts.items():
        own = blocks[str(multiple)]
        x = compare_blocks(str(multiple), first, batch, own, blocks[first])
        rows.append(
            Row(
                network=name,
                backend=options.backend,
                side=side,
                batch=batch,
                share=share,
                round_to=multiple,
                macs=cut.macs,
                params=cut.params,
                ms=float(np.median(np.concatenate(own))),
                ratio=x.ratio,
                low=x.low,
                high=x.high,
            )
        )
    return rows


def cuts_of(
    config: BackboneConfig, side: int, share: float, multiples: list[int], folder: Path
) -> dict[int, Cut]:
    """The same random scores, cut to the same MACs by each multiple."""
    net: DomainNet = domain_net(config, side, CLASSES)
    table = net.units.table
    everything = np.ones(table.count, dtype=bool)
    score = np.random.default_rng(0).random(table.count)
    cuts = {}
    for multiple in multiples:
        budget = make_budget(BudgetConfig(share, "macs", multiple), counted_pricer("macs", table))
        alive = select_union(score, budget)
        net.switches.copy_(torch.from_numpy(alive).float().expand_as(net.switches))
        graph = folder / f"{multiple}.onnx"
        onnx.save(onnx_graph(slim_network(net), side, side), graph)
        macs, params = (f(alive) / f(everything) for f in (table.macs, table.params))
        cuts[multiple] = Cut(graph, macs, params)
    return cuts


def _call(graph: Path, batch: int, side: int, options: SessionOptions) -> Callable[[], Any]:
    image = np.random.default_rng(0).standard_normal((batch, 3, side, side), np.float32)
    session = make_session(pin_domain(graph, 0), options, {"image"})
    return partial(run, session, {"image": image})


def _whole(text: str) -> list[int]:
    return [int(x) for x in text.split(",")]


def _markdown(row: Row) -> str:
    interval = "too few blocks" if row.low is None else f"{row.low:.3f} … {row.high:.3f}"
    return (
        f"| {row.network} | {row.backend} | {row.batch} | {row.share:g} | {row.round_to} "
        f"| {row.macs:.3f} | {row.params:.3f} | {row.ms:.3f} | {row.ratio:.3f} | {interval} |"
    )


if __name__ == "__main__":
    main()
