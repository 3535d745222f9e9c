"""BatchNorm with statistics, scale and shift of its own for every domain."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from prunion.trainer.routing import Routing

__all__ = ["DomainNorm"]


class DomainNorm(nn.Module):
    """Per-domain BatchNorm over `[N, C, H, W]`, started from one pretrained BatchNorm.

    In training every run of one domain is normalised by its own batch statistics; in evaluation
    every image by its domain's running ones. While the switches do not learn it takes them in:
    scale and shift of an off channel are 0.
    """

    running_mean: torch.Tensor
    running_var: torch.Tensor
    units: torch.Tensor

    def __init__(
        self,
        domains: int,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        running_mean: torch.Tensor,
        running_var: torch.Tensor,
        eps: float,
        units: np.ndarray,
        momentum: float = 0.1,
    ) -> None:
        """Start every domain from one BatchNorm over channels of `units` `[C]` (-1 = no switch)."""
        super().__init__()
        self.eps, self.momentum = eps, momentum
        weight = torch.ones_like(running_mean) if weight is None else weight
        bias = torch.zeros_like(running_mean) if bias is None else bias
        self.weight = nn.Parameter(weight.detach().repeat(domains, 1))
        self.bias = nn.Parameter(bias.detach().repeat(domains, 1))
        self.register_buffer("running_mean", running_mean.detach().repeat(domains, 1))
        self.register_buffer("running_var", running_var.detach().repeat(domains, 1))
        self.register_buffer("units", torch.from_numpy(units), persistent=False)

    def forward(self, x: torch.Tensor, routing: Routing) -> torch.Tensor:
        """Normalise `[N, C, ...]` by each image's domain."""
        weight, bias = self._gated(routing)
        if not self.training and len(routing.segments) > len(self.weight):  # a mixed batch
            scale, shift = self._affine(weight, bias)
            view = (-1, x.shape[1], *([1] * (x.dim() - 2)))
            return x * scale[routing.rows].view(view) + shift[routing.rows].view(view)
        parts = x.split([count for _, count in routing.segments])
        done = [
            self._one(part, domain, weight, bias)
            for part, (domain, _) in zip(parts, routing.segments, strict=True)
        ]
        return done[0] if len(done) == 1 else torch.cat(done)

    def affine(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Evaluation's `x · scale + shift` with every switch on, each `[D, C]`."""
        return self._affine(self.weight, self.bias)

    def _affine(
        self, weight: torch.Tensor, bias: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        scale = weight * torch.rsqrt(self.running_var + self.eps)
        return scale, bias - self.running_mean * scale

    def _gated(self, routing: Routing) -> tuple[torch.Tensor, torch.Tensor]:
        if routing.switches is None or routing.learning:
            return self.weight, self.bias
        gate = routing.switches[:, self.units % routing.switches.shape[1]]
        return self.weight * gate, self.bias * gate

    def _one(
        self, x: torch.Tensor, domain: int, weight: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        return F.batch_norm(
            x,
            self.running_mean[domain],
            self.running_var[domain],
            weight[domain],
            bias[domain],
            self.training,
            self.momentum,
            self.eps,
        )
