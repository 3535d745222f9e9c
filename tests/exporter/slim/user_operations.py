"""Small networks as users write them: operations that are not followed, and what begins at zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from tests.exporter.slim.user_networks import EXACT, WHOLE, bare, linear, net, parameter

__all__ = ["OPERATIONS"]


def layer_norm(m: Any, x: torch.Tensor) -> torch.Tensor:
    """Written by hand."""
    variance, mean = torch.var_mean(m.a(x), 1, keepdim=True)
    return (m.a(x) - mean) * torch.rsqrt(variance + 1e-5)


def largest(m: Any, x: torch.Tensor) -> torch.Tensor:
    """Only the four channels of the largest means."""
    means = x.mean((2, 3), True)
    return x * (means >= means.topk(4, 1).values[:, -1:]).float()


def as_many_tokens(m: Any, x: torch.Tensor) -> torch.Tensor:
    """As channels: nothing tells one axis from the other by its size."""
    y = m.norm(m.f(F.avg_pool2d(x, (8, 1)).squeeze(2).mT)).relu()
    return y.mT.unsqueeze(2).expand(-1, -1, 8, -1)


def tokens_times_0(m: Any, x: torch.Tensor) -> torch.Tensor:
    y = m.f(x.flatten(2).mT)
    return (y + m.g(y) * 0).mT.unflatten(2, (8, 8))


def images_attend(m: Any, x: torch.Tensor) -> torch.Tensor:
    weights = (x.flatten(1) @ x.flatten(1).mT / 512).softmax(1)
    return x + m.scale * (weights @ m.a(x).flatten(1)).view_as(x)


OPERATIONS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    # --- one of several outputs ---
    "LayerNorm by var_mean": (net(layer_norm, a=bare), WHOLE),
    "the largest channels": (net(largest), WHOLE),
    "a layer called twice on one tensor": (
        net(lambda m, x: m.a(x) * m.a(x).sigmoid(), a=bare),
        EXACT,
    ),
    "LayerScale in two spellings": (
        net(
            lambda m, x: x + m.g.view(1, -1, 1, 1) * m.a(x) + m.g[:, None, None] * m.b(x),
            g=lambda: parameter(8),
            a=bare,
            b=bare,
        ),
        EXACT,
    ),
    "sorted channels": (net(lambda m, x: x.sort(1).values), WHOLE),
    # --- channels that do not lie on axis 1, or become fewer ---
    "BatchNorm over tokens": (
        net(
            lambda m, x: m.norm(m.f(x.flatten(2).mT)).relu().mT.unflatten(2, (8, 8)),
            f=linear(),
            norm=lambda: nn.BatchNorm1d(64),
        ),
        WHOLE,
    ),
    "BatchNorm over as many tokens": (
        net(as_many_tokens, f=linear(), norm=lambda: nn.BatchNorm1d(8)),
        WHOLE,
    ),
    "tokens times 0": (net(tokens_times_0, f=linear(), g=linear()), WHOLE),
    "padding by less than nothing": (net(lambda m, x: F.pad(x, (0, 0, 0, 0, -2, 2))), WHOLE),
    # --- seen only once it has learnt, or not at all ---
    "images that attend to images, begun at 0": (
        net(images_attend, a=bare, scale=lambda: nn.Parameter(torch.zeros(1))),
        "on the others in its batch",
    ),
    "BatchNorm with eps=0": (
        net(lambda m, x: m.norm(x), norm=lambda: nn.BatchNorm2d(8, eps=0.0)),
        r"node batch_norm_1: its BatchNorm norm has eps=0",
    ),
}
