"""BatchNorm by the statistics of all processes' slices, several domains in one exchange.

torch's SyncBatchNorm does this for one set of statistics and on CUDA alone. Here a batch holds
several domains, each normalised by its own, and one exchange of a few numbers a channel serves all
of them, forwards and backwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from prunion.trainer.processes.group import Processes

__all__ = ["synced_norm"]


def synced_norm(
    x: torch.Tensor,
    segments: Sequence[tuple[int, int]],
    weight: torch.Tensor,
    bias: torch.Tensor,
    running: tuple[torch.Tensor, torch.Tensor],
    momentum: float,
    eps: float,
    processes: Processes,
) -> torch.Tensor:
    """Normalise this process's slice `[N, C, ...]` by the statistics of all slices.

    Every process must call it for the same domains; a domain may have no images here.

    Args:
        segments: `(domain, count)` of images of one domain in a row, each domain once.
        weight: of every domain, `[D, C]`.
        bias: the same.
        running: mean and variance `[D, C]`, which move by `momentum`.
    """
    y: torch.Tensor = _SyncedNorm.apply(
        x, weight, bias, tuple(segments), running, momentum, eps, processes
    )
    return y


class _SyncedNorm(torch.autograd.Function):
    """y = (x - m) / σ · w + b, where m and σ depend on every process's x."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        segments: tuple[tuple[int, int], ...],
        running: tuple[torch.Tensor, torch.Tensor],
        momentum: float,
        eps: float,
        processes: Processes,
    ) -> torch.Tensor:
        domains = [domain for domain, _ in segments]
        parts = x.split([count for _, count in segments])
        mean, variance, counts = _statistics(parts, processes)
        rows = torch.tensor(domains, device=x.device)
        with torch.no_grad():
            unbiased = variance * (counts / (counts - 1).clamp(min=1))
            for old, new in zip(running, (mean, unbiased), strict=True):
                moved = old[rows].lerp(new.to(old.dtype), momentum)
                old.index_copy_(0, rows, moved)
        inverse = (variance + eps).rsqrt()
        scale = weight[rows].double() * inverse
        shift = bias[rows].double() - mean * scale
        kind = weight.dtype
        done = [
            torch.addcmul(_along(shift[i].to(kind), part), part, _along(scale[i].to(kind), part))
            for i, part in enumerate(parts)
        ]
        ctx.save_for_backward(x, weight, rows, mean, inverse, counts)
        ctx.segments, ctx.processes = segments, processes
        return torch.cat(done).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, rows, mean, inverse, counts = ctx.saved_tensors
        sizes = [count for _, count in ctx.segments]
        kind = weight.dtype
        parts, pulls = x.split(sizes), gradients[0].split(sizes)
        axes = [0, *range(2, x.dim())]
        own = torch.stack(  # of this slice: Σ dy and Σ dy · x̂, `[2, S, C]`
            [
                torch.stack([dy.to(kind).sum(axes) for dy in pulls]),
                torch.stack(
                    [
                        (dy * _normal(part, mean[i], inverse[i], kind)).sum(axes)
                        for i, (part, dy) in enumerate(zip(parts, pulls, strict=True))
                    ]
                ),
            ]
        ).double()
        every = own.clone()
        ctx.processes.sum([every])
        means = every / counts
        scale = weight[rows].double() * inverse
        back = [
            (
                (
                    dy
                    - _along(means[0, i].to(kind), part)
                    - _normal(part, mean[i], inverse[i], kind) * _along(means[1, i].to(kind), part)
                )
                * _along(scale[i].to(kind), part)
            ).to(x.dtype)
            for i, (part, dy) in enumerate(zip(parts, pulls, strict=True))
        ]
        by_weight, by_bias = torch.zeros_like(weight), torch.zeros_like(weight)
        by_bias.index_copy_(0, rows, own[0].to(kind))
        by_weight.index_copy_(0, rows, own[1].to(kind))
        return torch.cat(back), by_weight, by_bias, None, None, None, None, None


def _statistics(
    parts: Sequence[torch.Tensor], processes: Processes
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean and variance `[S, C]` of each part over all processes, and values a channel `[S, 1]`.

    In float64: a variance from sums of squares would lose all its digits in float32.
    """
    channels = parts[0].shape[1]
    table = parts[0].new_zeros((3, len(parts), channels), dtype=torch.float64)
    for i, part in enumerate(parts):
        if part.shape[0]:
            axes = [0, *range(2, part.dim())]
            whole = part if part.dtype == torch.float64 else part.float()
            variance, mean = torch.var_mean(whole, axes, correction=0)
            count, mean = part.numel() // channels, mean.double()
            table[0, i] = count
            table[1, i] = count * mean
            table[2, i] = count * (variance.double() + mean.square())
    processes.sum([table])
    counts = table[0, :, :1]
    mean = table[1] / counts
    return mean, (table[2] / counts - mean.square()).clamp(min=0), counts


def _along(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Values `[C]` along the channels of `x`."""
    return values.view(1, -1, *([1] * (x.dim() - 2)))


def _normal(
    x: torch.Tensor, mean: torch.Tensor, inverse: torch.Tensor, kind: torch.dtype
) -> torch.Tensor:
    scale = inverse.to(kind)
    return torch.addcmul(_along(-(mean * inverse).to(kind), x), x, _along(scale, x))
