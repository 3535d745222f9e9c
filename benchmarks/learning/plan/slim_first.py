"""What Torch-Pruning would keep of a backbone that has not seen a domain yet.

Its importance of every channel, of the pretrained weights alone: the magnitude of the weights, the
scale in BatchNorm, or Taylor's first-order estimate (Molchanov et al. 2019, arXiv:1906.10771).
There are no images yet, so Taylor's loss is that of noise, the mean square of the features. The cut
is prunion's, to the very budget: `global` sorts all channels together, `uniform` takes the same
share of every group of channels that hang together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from prunion.runtime.base import install_hint
from prunion.runtime.bundle import UnitTable
from prunion.runtime.errors import MissingDependencyError, VerificationError
from prunion.trainer.backbone import load_backbone
from prunion.trainer.config import BackboneConfig, InputConfig
from prunion.trainer.network import build_network

__all__ = ["SlimFirst", "slim_worth"]

NOISE_IMAGES = 16


@dataclass(frozen=True)
class SlimFirst:
    """By which of Torch-Pruning's importances, and over which channels together."""

    importance: Literal["magnitude", "taylor", "batchnorm"]
    scope: Literal["global", "uniform"]


def slim_worth(how: SlimFirst, backbone: BackboneConfig, shape: InputConfig) -> np.ndarray:
    """Worth of each unit, not negative: `[U]`.

    Raises:
        MissingDependencyError: Torch-Pruning is not installed.
        VerificationError: it did not reach a unit.
    """
    height, width = shape.size
    model = _plain_model(backbone, height, width)
    table = build_network(backbone, shape.size, [2]).units.table
    worth = np.full(table.count, np.nan)
    for name, score in _scores(model, how.importance, height, width).items():
        units = table.slots[f"{name}.weight", 0]
        if how.scope == "uniform":
            score = (score.argsort().argsort() + 1) / len(score)
        worth[units[units >= 0]] = score[units >= 0]
    return _checked(worth, table)


def _scores(model: nn.Module, importance: str, height: int, width: int) -> dict[str, np.ndarray]:
    """Torch-Pruning's score of each channel of a group, by the name of the group's first layer."""
    try:
        import torch_pruning
    except ImportError:
        raise MissingDependencyError(
            f"this needs the package torch-pruning: {install_hint('bench')}"
        ) from None
    noise = torch.randn(NOISE_IMAGES, 3, height, width, generator=torch.Generator().manual_seed(0))
    for parameter in model.parameters():  # its trace is autograd's
        parameter.requires_grad_(True)
    graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=noise[:1])
    rules: dict[str, Any] = {
        "magnitude": torch_pruning.importance.GroupMagnitudeImportance,
        "taylor": torch_pruning.importance.GroupTaylorImportance,
        "batchnorm": torch_pruning.importance.BNScaleImportance,
    }
    if importance == "taylor":
        model(noise).square().mean().backward()
    rule = rules[importance]()
    names = {module: name for name, module in model.named_modules()}
    return {
        names[group[0].dep.target.module]: rule(group).detach().double().numpy()
        for group in graph.get_all_groups(root_module_types=[nn.Conv2d])
    }


def _plain_model(backbone: BackboneConfig, height: int, width: int) -> nn.Module:
    """The library's own module with the weights of the backbone; nothing behind the cut."""
    if backbone.source == "timm":
        import timm

        model: nn.Module = timm.create_model(backbone.name, num_classes=0)
    else:
        from torchvision.models import get_model

        model = get_model(backbone.name, weights=None)
    children = [name for name, _ in model.named_children()]
    last = children.index(backbone.cut) + 1 if backbone.cut else len(children)
    behind = children[last:] or (["fc"] if backbone.source == "torchvision" else [])
    for name in behind:
        setattr(model, name, nn.Identity())
    state = load_backbone(backbone, height, width).state_dict()
    model.load_state_dict(state, strict=False)
    return model.eval()


def _checked(worth: np.ndarray, table: UnitTable) -> np.ndarray:
    missed = [n for n, members in enumerate(table.widths) if np.isnan(worth[members]).any()]
    if missed:
        raise VerificationError(
            f"Torch-Pruning ranked no channel of {len(missed)} of {len(table.widths)} widths: "
            "choose another backbone"
        )
    return worth
