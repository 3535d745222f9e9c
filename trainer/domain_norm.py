"""BatchNorm with statistics, scale and shift of its own for every domain."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from prunion.trainer.routing import Routing

__all__ = ["DomainNorm"]


class DomainNorm(nn.Module):
    """Per-domain BatchNorm over `[N, C, H, W]`, started from one pretrained BatchNorm.

    In training every run of one domain is normalised by its own batch statistics; in evaluation
    every image by its domain's running ones.
    """

    running_mean: torch.Tensor
    running_var: torch.Tensor

    def __init__(
        self,
        domains: int,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        running_mean: torch.Tensor,
        running_var: torch.Tensor,
        eps: float,
        momentum: float = 0.1,
    ) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        weight = torch.ones_like(running_mean) if weight is None else weight
        bias = torch.zeros_like(running_mean) if bias is None else bias
        self.weight = nn.Parameter(weight.detach().repeat(domains, 1))
        self.bias = nn.Parameter(bias.detach().repeat(domains, 1))
        self.register_buffer("running_mean", running_mean.detach().repeat(domains, 1))
        self.register_buffer("running_var", running_var.detach().repeat(domains, 1))

    def forward(self, x: torch.Tensor, routing: Routing) -> torch.Tensor:
        """Normalise `[N, C, ...]` by each image's domain."""
        if not self.training and len(routing.segments) > 1:
            scale, shift = self.affine()
            view = (-1, x.shape[1], *([1] * (x.dim() - 2)))
            return x * scale[routing.rows].view(view) + shift[routing.rows].view(view)
        parts = x.split([count for _, count in routing.segments])
        done = [self._one(p, d) for p, (d, _) in zip(parts, routing.segments, strict=True)]
        return done[0] if len(done) == 1 else torch.cat(done)

    def affine(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Evaluation's `x · scale + shift`, each `[D, C]`."""
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        return scale, self.bias - self.running_mean * scale

    def _one(self, x: torch.Tensor, domain: int) -> torch.Tensor:
        return F.batch_norm(
            x,
            self.running_mean[domain],
            self.running_var[domain],
            self.weight[domain],
            self.bias[domain],
            self.training,
            self.momentum,
            self.eps,
        )
