"""What one would deploy without sharing: networks pruned alone by Torch-Pruning's magnitudes.

Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023. Weights are drawn at random:
widths, and so size and speed, follow from the budget alone, since every layer loses one share.
"""

from __future__ import annotations

import contextlib
import copy
import io
import math
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import fx, nn

from prunion.exporter.bundle.whole import unpruned_network
from prunion.exporter.graph import OPSET
from prunion.runtime.base import install_hint, reason_of
from prunion.runtime.bundle import open_bundle
from prunion.runtime.errors import MissingDependencyError, PrunionError, UnsupportedGraphError
from prunion.trainer.backbone import op_name, tensor_at
from prunion.trainer.network import graph_from_json

__all__ = ["write_torch_pruned"]

HEAD = ("head.weight", "head.bias")
STEPS, CLOSE = 8, 0.98  # the search for a share ends when the cost is this near below its goal
MOST_PRUNED = 0.95


def write_torch_pruned(
    bundle: Path | str, checkpoint: Path | str | None, rival: str, folder: Path
) -> list[Path]:
    """Write a rival's ONNX graphs, `image` `[N, 3, H, W]` to `logits` `[N, C]`, into `folder`.

    Args:
        checkpoint: what the bundle was exported from; None takes the backbone that it records.
        rival: `separate-pruned` (a network for each domain, each as large as the bundle's trunk),
            `separate-pruned-total` (together as large), or `torch-pruning` (one for all domains,
            as many parameters, one head over all classes). Size is counted in what the bundle's
            budget is asked in, MACs or else parameters.

    Raises:
        InputError: as `write_unpruned_of`.
        MissingDependencyError: torch-pruning is not installed.
        PrunionError: Torch-Pruning cannot prune the network so far, or not at all.
    """
    manifest = open_bundle(bundle).manifest
    net, size = unpruned_network(bundle, checkpoint)
    counts = [len(x.classes) for x in manifest.domains]
    together = rival == "torch-pruning"
    kind = "macs" if manifest.budget.kind == "macs" and not together else "params"
    goal = (manifest.macs if kind == "macs" else manifest.params)["exported"]
    if rival == "separate-pruned-total":
        goal /= len(counts)
    trunk = _as_modules(graph_from_json(net.graph, str(bundle)))
    classes = sum(counts) if together else max(counts)
    model = _with_head(trunk, classes, size)
    pruned = _pruned_to(model, goal, kind, size, manifest.round_to)
    graph = _plain_graph(pruned, size)
    paths = []
    for row, count in enumerate([classes] if together else counts):
        paths.append(folder / f"{rival}-{row}.onnx")
        onnx.save(_of_classes(graph, count), paths[-1])
    return paths


def _as_modules(module: fx.GraphModule) -> fx.GraphModule:
    """A flat graph with freshly drawn layers in the place of operations: pruners look for those."""
    made: dict[str, nn.Module] = {}
    for node in list(module.graph.nodes):
        op = op_name(node)
        if op not in ("conv2d", "linear", "batch_norm"):
            continue
        tensor = node.args[3 if op == "batch_norm" else 1]
        if tensor.op != "get_attr":
            raise UnsupportedGraphError(
                f"{node.name} computes its weights, which Torch-Pruning cannot prune: leave this "
                "rival out"
            )
        name = f"{op}/{tensor.target}".replace(".", "/")
        if name not in made:
            made[name] = _layer(op, node, tensor_at(module, str(tensor.target)))
            module.add_module(name, made[name])
        with module.graph.inserting_before(node):
            node.replace_all_uses_with(module.graph.call_module(name, (node.args[0],)))
        module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    return fx.GraphModule(module, module.graph)


def _layer(op: str, node: fx.Node, tensor: torch.Tensor) -> nn.Module:
    if op == "batch_norm":
        return nn.BatchNorm2d(len(tensor), affine=node.args[1] is not None)
    with_bias = len(node.args) > 2 and node.args[2] is not None
    if op == "linear":
        return nn.Linear(tensor.shape[1], tensor.shape[0], bias=with_bias)
    given: list[Any] = [tuple(x) if isinstance(x, list) else x for x in node.args[3:]]
    stride, padding, dilation, groups = given + [1, 0, 1, 1][len(given) :]
    return nn.Conv2d(
        tensor.shape[1] * groups,
        tensor.shape[0],
        (tensor.shape[2], tensor.shape[3]),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=with_bias,
    )


def _with_head(trunk: fx.GraphModule, classes: int, size: tuple[int, int]) -> nn.Module:
    with torch.no_grad():
        features = trunk.eval()(torch.zeros(1, 3, *size)).shape[1]
    head = nn.Linear(features, classes)
    return nn.Sequential(OrderedDict(trunk=trunk, head=head)).eval()


def _pruned_to(
    model: nn.Module, goal: float, kind: str, size: tuple[int, int], round_to: int
) -> nn.Module:
    """The largest cut of one share of every layer that costs no more than `goal`."""
    full = _cost(model, kind, size)
    if full <= goal:
        return model
    best, low, high = None, 0.0, MOST_PRUNED
    ratio = min(1 - math.sqrt(goal / full), high)  # a layer has two widths
    for _ in range(STEPS):
        cut = _cut(model, ratio, size, round_to)
        cost = _cost(cut, kind, size)
        if cost <= goal:
            best, high = cut, ratio
            if cost >= CLOSE * goal:
                break
        else:
            low = ratio
        ratio = (low + high) / 2
    if best is None:
        raise PrunionError(
            f"Torch-Pruning leaves {cost:,.0f} {kind} with widths in multiples of {round_to}, more "
            f"than the {goal:,.0f} asked: leave this rival out"
        )
    return best


def _cut(model: nn.Module, ratio: float, size: tuple[int, int], round_to: int) -> nn.Module:
    try:
        import torch_pruning
    except ImportError:
        raise MissingDependencyError(
            f"this rival needs the package torch-pruning: {install_hint('bench')}"
        ) from None
    cut = copy.deepcopy(model)
    for parameter in cut.parameters():  # its trace is autograd's
        parameter.requires_grad_(True)
    try:
        pruner = torch_pruning.pruner.BasePruner(
            cut,
            torch.randn(1, 3, *size),
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=ratio,
            ignored_layers=[cut.get_submodule("head")],
            round_to=round_to,
        )
        pruner.step()
        cut(torch.zeros(1, 3, *size))
    except Exception as exc:  # it raises whatever torch does in a graph it misread
        raise PrunionError(
            f"Torch-Pruning cannot prune this network ({reason_of(exc)}): leave this rival out"
        ) from exc
    return cut.eval()


def _cost(model: nn.Module, kind: str, size: tuple[int, int]) -> float:
    """Weights or multiply-accumulates of convolutions and linear layers, the head apart."""
    found: list[int] = []

    def count(layer: nn.Module, _: object, output: torch.Tensor) -> None:
        weight = layer.get_parameter("weight")
        found.append(output.numel() * weight[0].numel() if kind == "macs" else weight.numel())

    trunk = model.get_submodule("trunk")
    layers = [m for m in trunk.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        model(torch.zeros(1, 3, *size))
    for hook in hooks:
        hook.remove()
    return float(sum(found))


def _plain_graph(model: nn.Module, size: tuple[int, int]) -> onnx.ModelProto:
    """As a user of Torch-Pruning would: torch's exporter, which folds every BatchNorm."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model,
            (torch.randn(2, 3, *size),),
            dynamo=True,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("N")},),
            verbose=False,
        )
    assert program is not None
    graph: onnx.ModelProto = program.model_proto
    return graph


def _of_classes(graph: onnx.ModelProto, count: int) -> onnx.ModelProto:
    """The graph with the first `count` classes of its head."""
    made = copy.deepcopy(graph)
    heads = [x for x in made.graph.initializer if x.name in HEAD]
    assert len(heads) == len(HEAD), "torch's exporter keeps the names of parameters"
    for tensor in heads:
        part = np.ascontiguousarray(numpy_helper.to_array(tensor)[:count])
        tensor.CopyFrom(numpy_helper.from_array(part, tensor.name))
    for output in made.graph.output:
        output.type.tensor_type.shape.dim[1].dim_value = count
    return made
