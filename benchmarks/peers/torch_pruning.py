"""`python -m prunion.benchmarks.peers.torch_pruning`: beside it, on the same dead channels."""

from __future__ import annotations

import copy
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import onnxruntime
import torch

from prunion.benchmarks.peers.torch_pruning_peer import (
    CLASSES,
    SIDE,
    copy_head,
    drawn_network,
    export_peer,
    prune_same,
    weights_of,
)
from prunion.exporter.graph import onnx_graph
from prunion.exporter.slim import slim_network
from prunion.runtime.backends import SessionOptions, make_ort_session, pinned_session
from prunion.runtime.base import relative_error, time_interleaved, write_json
from prunion.runtime.cli import FilePath, FiniteRange, OneLineCommand, seconds_option
from prunion.runtime.errors import VerificationError
from prunion.trainer.backbone import drop_classifier, trace
from prunion.trainer.config import BudgetConfig
from prunion.trainer.cost import counted_pricer, make_budget, select_union
from prunion.trainer.network import DomainNet

__all__ = ["Comparison", "compare", "torch_pruning_command"]

NETWORKS = ("resnet50", "densenet121", "mobilenet_v2")
SAME = 1e-4


@dataclass(frozen=True)
class Comparison:
    """Both libraries' cut of one network.

    Attributes:
        ours, theirs: weights of convolutions and linear layers left, the classifier apart.
        ours_nodes, theirs_nodes: operators after ONNX Runtime's own folding, most frequent first.
        error: `max |Δ| / max |reference|` between both ONNX graphs' logits.
    """

    network: str
    round_to: int
    full: int
    ours: int
    theirs: int
    batch: int
    ours_ms: float
    theirs_ms: float
    error: float
    ours_nodes: dict[str, int]
    theirs_nodes: dict[str, int]


@click.command(cls=OneLineCommand)
@click.option("--only", default=",".join(NETWORKS), show_default=True, help="torchvision names.")
@click.option(
    "--share",
    type=FiniteRange(0, 1, min_open=True),
    default=0.5,
    show_default=True,
    help="Of the parameters, kept at random.",
)
@click.option("--round-to", "multiples", default="1,16", show_default=True)
@click.option("--batches", default="1,8", show_default=True)
@seconds_option(4.0, "Per case.")
@click.option("--threads", default=1, show_default=True)
@click.option("--json", "path", type=FilePath(dir_okay=False))
def torch_pruning_command(
    only: str,
    share: float,
    multiples: str,
    batches: str,
    seconds: float,
    threads: int,
    path: str | None,
) -> None:
    """Parameters left and ONNX Runtime CPU latency, both libraries interleaved in one run."""
    torch.set_num_threads(threads)
    rows: list[Comparison] = []
    titles = "network round-to batch prunion Torch-Pruning prunion-ms TP-ms ratio error".split()
    print(f"| {' | '.join(titles)} |\n" + "| --- " * len(titles) + "|")
    for name in only.split(","):
        for multiple in (int(text) for text in multiples.split(",")):
            sizes = [int(batch) for batch in batches.split(",")]
            for row in compare(name, share, multiple, sizes, seconds, threads):
                rows.append(row)
                print(_markdown(row), flush=True)
    for row in rows:
        if row.ours_nodes != row.theirs_nodes:
            ours, theirs = Counter(row.ours_nodes), Counter(row.theirs_nodes)
            print(
                f"\n{row.network}, round_to {row.round_to}, batch {row.batch}: only in prunion's "
                f"graph {dict(ours - theirs)}, only in Torch-Pruning's {dict(theirs - ours)}"
            )
    if path:
        write_json(path, [asdict(row) for row in rows])


def compare(
    name: str, share: float, round_to: int, batches: list[int], seconds: float, threads: int
) -> list[Comparison]:
    """Cut the same channels with both libraries and time the results beside each other.

    Raises:
        VerificationError: the two graphs do not give the same logits.
    """
    model = drawn_network(name)
    module = trace(copy.deepcopy(model), SIDE, SIDE)
    drop_classifier(module.graph)
    net = DomainNet(module, [CLASSES]).eval()
    table = net.units.table
    budget = make_budget(BudgetConfig(share, round_to=round_to), counted_pricer("params", table))
    score = np.random.default_rng(0).random(table.count)
    alive = select_union(score, budget)
    net.switches.copy_(torch.from_numpy(alive).float()[None])
    copy_head(model, net.heads[0])
    pruned = prune_same(copy.deepcopy(model), table, alive)
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder) / "ours.onnx", Path(folder) / "theirs.onnx"
        onnx.save(onnx_graph(slim_network(net), SIDE, SIDE), ours)
        export_peer(pruned, theirs)
        options = SessionOptions("cpu", threads, share_arena=False)
        sessions = {
            "ours": pinned_session(ours, 0, options),
            "theirs": make_ort_session(theirs, options),
        }
        nodes = {"ours": _optimised(ours, pin=True), "theirs": _optimised(theirs, pin=False)}
        error = _difference(sessions, name)
        rows = []
        for batch in batches:
            times = time_interleaved(
                {key: _call(session, batch) for key, session in sessions.items()}, seconds
            )
            rows.append(
                Comparison(
                    name,
                    round_to,
                    int(budget.full),
                    table.params(alive),
                    weights_of(pruned),
                    batch,
                    times["ours"].p50_ms,
                    times["theirs"].p50_ms,
                    error,
                    nodes["ours"],
                    nodes["theirs"],
                )
            )
        return rows


def _optimised(graph: Path, *, pin: bool) -> dict[str, int]:
    """How often every operator is left after ONNX Runtime's portable optimisations."""
    from prunion.runtime.graph import pin_domain

    written = graph.with_suffix(".optimised.onnx")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(written)
    source = pin_domain(graph, 0) if pin else str(graph)
    onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return dict(Counter(n.op_type for n in onnx.load(written).graph.node).most_common())


def _difference(sessions: dict[str, Any], name: str) -> float:
    feeds = {"image": np.random.default_rng(1).standard_normal((4, 3, SIDE, SIDE), np.float32)}
    ours, theirs = (sessions[key].run(["logits"], feeds)[0] for key in ("ours", "theirs"))
    error = relative_error(theirs, ours)
    if not error <= SAME:
        raise VerificationError(
            f"{name}: prunion's and Torch-Pruning's graphs differ by {error:.1e} of the largest "
            "logit: they did not remove the same channels"
        )
    return error


def _call(session: Any, batch: int) -> Callable[[], Any]:
    image = np.random.default_rng(0).standard_normal((batch, 3, SIDE, SIDE), np.float32)
    return lambda: session.run(["logits"], {"image": image})


def _markdown(row: Comparison) -> str:
    return (
        f"| {row.network} | {row.round_to} | {row.batch} | {row.ours:,} | {row.theirs:,} "
        f"| {row.ours_ms:.1f} | {row.theirs_ms:.1f} | {row.ours_ms / row.theirs_ms:.3f} "
        f"| {row.error:.0e} |"
    )


if __name__ == "__main__":
    torch_pruning_command()
