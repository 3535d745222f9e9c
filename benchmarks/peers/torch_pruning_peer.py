"""Torch-Pruning's side of the comparison: the same network, the same channels cut, its graph."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from prunion.exporter.graph import OPSET
from prunion.runtime.base import install_hint
from prunion.runtime.bundle import UnitTable
from prunion.runtime.errors import MissingDependencyError

__all__ = [
    "CLASSES",
    "SIDE",
    "copy_head",
    "drawn_network",
    "export_peer",
    "prune_same",
    "weights_of",
]

SIDE = 224
CLASSES = 10


def prune_same(model: nn.Module, table: UnitTable, alive: np.ndarray) -> nn.Module:
    """Let Torch-Pruning remove exactly the output channels that `alive` `[U]` says are dead.

    It follows its own dependency graph to everything tied to them; a layer it reached that way is
    narrow already and skipped.
    """
    try:
        import torch_pruning
    except ImportError:
        raise MissingDependencyError(
            f"this needs the package torch-pruning: {install_hint('bench')}"
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


def drawn_network(name: str) -> nn.Module:
    """torchvision's network with drawn weights; statistics of noise, so that nothing explodes."""
    from torchvision.models import get_model

    torch.manual_seed(0)
    model: nn.Module = get_model(name, weights=None, num_classes=CLASSES)
    with torch.no_grad():
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.weight.copy_(1 + 0.2 * torch.randn_like(norm.weight))
                norm.bias.copy_(0.2 * torch.randn_like(norm.bias))
                norm.momentum = 1.0
        model.train()
        model(torch.randn(4, 3, SIDE, SIDE))
    return model.eval()


def copy_head(model: nn.Module, head: nn.Module) -> None:
    """Give `head` the weights of the model's classifier."""
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    head.load_state_dict(last.state_dict())


def weights_of(model: nn.Module) -> int:
    """Weights of convolutions and linear layers, the classifier (the last one) apart."""
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    return sum(m.weight.numel() for m in layers[:-1])


def export_peer(model: nn.Module, path: Path) -> None:
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
