"""BatchNorm with statistics, scale and shift of its own for every domain.

A forward pass tells its per-domain layers whose images the batch holds, and which channels each
domain uses, by one `Routing`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from prunion.trainer.backbone import NORM_MOMENTUM
from prunion.trainer.processes import ALONE, Processes, synced_norm

__all__ = ["DomainNorm", "Routing", "route"]


class DomainNorm(nn.Module):
    """Per-domain BatchNorm over `[N, C, H, W]`, started from one pretrained BatchNorm.

    In training, images of one domain that follow each other are normalised by their own batch
    statistics; in evaluation every image by its domain's running ones. While the switches do not
    learn, the norm applies them itself: scale and shift of an off channel are 0. A `frozen` one
    uses the running statistics in training too, and leaves them as they are.
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
    ) -> None:
        """Start every domain from one BatchNorm over channels of `units` `[C]` (-1 = no switch)."""
        super().__init__()
        self.eps, self.momentum, self.frozen = eps, NORM_MOMENTUM, False
        self.processes: Processes = ALONE  # whose slices make a batch's statistics
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
        if self.processes.slices and self.training and not self.frozen:
            running = (self.running_mean, self.running_var)
            return synced_norm(
                x, routing.segments, weight, bias, running, self.momentum, self.eps, self.processes
            )
        parts = x.split([count for _, count in routing.segments])
        done = [
            self._one(part, domain, weight, bias) if len(part) else part
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
        gate = routing.of_channels(self.units)
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
            self.training and not self.frozen,
            self.momentum,
            self.eps,
        )


@dataclass(frozen=True)
class Routing:
    """What the per-domain layers of one forward pass need to know.

    Attributes:
        segments: `(domain, count)` of images of one domain in a row, in batch order.
        rows: domain of every image, `[N]` int64.
        switches: 0/1 per domain and unit, `[D, U]`, and a last column of ones; None while every
            switch is on. `gated` adds that column.
    """

    segments: tuple[tuple[int, int], ...]
    rows: torch.Tensor
    switches: torch.Tensor | None

    @property
    def learning(self) -> bool:
        """Whether gradients are asked for, so that gates must act behind the activations."""
        return self.switches is not None and self.switches.requires_grad

    def gated(self, switches: torch.Tensor) -> Routing:
        """The same batch with `switches` `[D, U]`."""
        ones = switches.new_ones(len(switches), 1)
        return replace(self, switches=torch.cat([switches, ones], dim=1))

    def of_channels(self, units: torch.Tensor) -> torch.Tensor:
        """Every domain's switches of channels `units` `[C]` (-1 = always on): `[D, C]`.

        A channel without a switch has unit -1. Modulo U + 1 that is the last column, all ones: so
        one lookup serves all channels, and no step of it asks which of them have a switch.
        """
        assert self.switches is not None
        return self.switches.index_select(1, units % self.switches.shape[1])

    def gate(self, units: torch.Tensor) -> torch.Tensor:
        """Each image's switches of channels `units` `[C]`: `[1 or N, C]`."""
        columns = self.of_channels(units)
        if len(self.segments) == 1:
            domain = self.segments[0][0]
            return columns[domain : domain + 1]
        return columns.index_select(0, self.rows)


def route(domains: Sequence[tuple[int, int]] | torch.Tensor, device: torch.device) -> Routing:
    """Routing of a batch given as `(domain, count)` segments or as one domain per image `[N]`."""
    if isinstance(domains, torch.Tensor):
        values, counts = torch.unique_consecutive(domains.cpu(), return_counts=True)
        segments = tuple(zip(values.tolist(), counts.tolist(), strict=True))
        return Routing(segments, domains.to(device), None)
    segments = tuple((int(d), int(n)) for d, n in domains)
    # Filled on the device: a copy to a GPU would wait for all that it still has to do.
    rows = torch.cat([torch.full((n,), d, device=device) for d, n in segments])
    return Routing(segments, rows, None)
