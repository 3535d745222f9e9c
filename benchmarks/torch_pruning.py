"""`python -m prunion.benchmarks.torch_pruning`: beside Torch-Pruning, on the same dead channels."""

from __future__ import annotations

import contextlib
import copy
import io
import tempfile
import warnings
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
from torch import nn

from prunion.exporter.onnx_graph import OPSET, onnx_graph
from prunion.exporter.slim import slim_network
from prunion.runtime.errors import MissingDependencyError, VerificationError
from prunion.runtime.files import write_json
from prunion.runtime.ort_session import SessionOptions, make_session, pinned_session
from prunion.runtime.timing import time_interleaved
from prunion.runtime.unit_table import UnitTable
from prunion.trainer.backbones import drop_classifier
from prunion.trainer.budget import make_budget, select_union
from prunion.trainer.config import BudgetConfig
from prunion.trainer.network import DomainNet
from prunion.trainer.trace import trace

__all__ = ["Comparison", "compare", "torch_pruning_command"]

NETWORKS = ("resnet50", "densenet121", "mobilenet_v2")
SIDE = 224
CLASSES = 10
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


@click.command()
@click.option("--only", default=",".join(NETWORKS), show_default=True, help="torchvision names.")
@click.option("--share", default=0.5, show_default=True, help="Of the parameters, kept at random.")
@click.option("--round-to", "multiples", default="1,16", show_default=True)
@click.option("--batches", default="1,8", show_default=True)
@click.option("--seconds", default=4.0, show_default=True, help="Per case.")
@click.option("--threads", default=1, show_default=True)
@click.option("--json", "path", type=click.Path(dir_okay=False))
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
    model = _drawn(name)
    module = trace(copy.deepcopy(model), SIDE, SIDE)
    drop_classifier(module.graph)
    net = DomainNet(module, [CLASSES]).eval()
    table = net.units.table
    budget = make_budget(BudgetConfig(share, round_to=round_to), table, net.units.group)
    score = np.random.default_rng(0).random(table.count)
    alive = select_union(score, table, net.units.group, budget)
    net.switches.copy_(torch.from_numpy(alive).float()[None])
    _copy_head(model, net.heads[0])
    pruned = prune_same(copy.deepcopy(model), table, alive)
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder) / "ours.onnx", Path(folder) / "theirs.onnx"
        onnx.save(onnx_graph(slim_network(net), SIDE, SIDE), ours)
        _export(pruned, theirs)
        options = SessionOptions("cpu", threads, share_arena=False)
        sessions = {
            "ours": pinned_session(ours, 0, options),
            "theirs": make_session(theirs, options),
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
                    _weights(pruned),
                    batch,
                    times["ours"].p50_ms,
                    times["theirs"].p50_ms,
                    error,
                    nodes["ours"],
                    nodes["theirs"],
                )
            )
        return rows


def prune_same(model: nn.Module, table: UnitTable, alive: np.ndarray) -> nn.Module:
    """Let Torch-Pruning remove exactly the output channels that `alive` `[U]` says are dead.

    It follows its own dependency graph to everything tied to them; a layer it reached that way is
    narrow already and skipped.
    """
    try:
        import torch_pruning
    except ImportError:
        raise MissingDependencyError(
            "this needs the package torch-pruning: pip install 'prunion[bench]'"
        ) from None
    example = torch.randn(1, 3, SIDE, SIDE)
    for parameter in model.parameters():  # its trace is autograd's
        parameter.requires_grad_(True)
    graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=example)
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    for name, layer in layers.items():
        units = table.slots[f"{name}.weight", 0]
        dead = np.flatnonzero(~np.append(alive, True)[units])
        if len(dead) and layer.weight.shape[0] == len(units):
            depthwise = layer.groups == layer.in_channels and layer.groups > 1
            cut = (
                torch_pruning.prune_depthwise_conv_out_channels
                if depthwise
                else torch_pruning.prune_conv_out_channels
            )
            graph.get_pruning_group(layer, cut, idxs=dead.tolist()).prune()
    return model.eval()


def _drawn(name: str) -> nn.Module:
    """torchvision's network with drawn weights; statistics of noise, so that nothing explodes."""
    from torchvision.models import get_model

    torch.manual_seed(0)
    model = get_model(name, weights=None, num_classes=CLASSES)
    with torch.no_grad():
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.weight.copy_(1 + 0.2 * torch.randn_like(norm.weight))
                norm.bias.copy_(0.2 * torch.randn_like(norm.bias))
                norm.momentum = 1.0
        model.train()
        model(torch.randn(4, 3, SIDE, SIDE))
    return model.eval()


def _copy_head(model: nn.Module, head: nn.Module) -> None:
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    head.load_state_dict(last.state_dict())


def _weights(model: nn.Module) -> int:
    """Weights of convolutions and linear layers, the classifier (the last one) apart."""
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    return sum(m.weight.numel() for m in layers[:-1])


def _export(model: nn.Module, path: Path) -> None:
    """As a user of Torch-Pruning would: torch's exporter, which folds every BatchNorm."""
    batch = torch.export.Dim("N")
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model,
            (torch.randn(2, 3, SIDE, SIDE),),
            dynamo=True,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes=({0: batch},),
            verbose=False,
        )
    assert program is not None
    onnx.save(program.model_proto, path)


def _optimised(graph: Path, *, pin: bool) -> dict[str, int]:
    """How often every operator is left after ONNX Runtime's portable optimisations."""
    from prunion.runtime.graph_edit import pin_domain

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
    error = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    if not error <= SAME:
        raise VerificationError(
            f"{name}: prunion's and Torch-Pruning's graphs differ by {error:.1e} of the largest "
            "logit: they did not remove the same channels"
        )
    return error


def _call(session: Any, batch: int) -> Callable[[], Any]:
    image = np.random.default_rng(0).standard_normal((batch, 3, SIDE, SIDE), np.float32)
    return lambda: session.run(None, {"image": image})


def _markdown(row: Comparison) -> str:
    return (
        f"| {row.network} | {row.round_to} | {row.batch} | {row.ours:,} | {row.theirs:,} "
        f"| {row.ours_ms:.1f} | {row.theirs_ms:.1f} | {row.ours_ms / row.theirs_ms:.3f} "
        f"| {row.error:.0e} |"
    )


if __name__ == "__main__":
    torch_pruning_command()
