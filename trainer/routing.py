"""Which images of a batch belong to which domain, and which channels each domain uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

__all__ = ["Routing", "route"]


@dataclass(frozen=True)
class Routing:
    """What the per-domain layers of one forward pass need to know.

    Attributes:
        segments: runs of images of one domain, `(domain, count)`, in batch order.
        rows: domain of every image, `[N]` int64.
        switches: 0/1 per domain and unit with a column of ones at the end, `[D, U + 1]`;
            None while every switch is on.
    """

    segments: tuple[tuple[int, int], ...]
    rows: torch.Tensor
    switches: torch.Tensor | None

    @property
    def learning(self) -> bool:
        """Whether gradients are asked for, so that gates must act behind the activations."""
        return self.switches is not None and self.switches.requires_grad

    def gate(self, units: torch.Tensor) -> torch.Tensor:
        """Switches of channels `units` `[C]` (-1 = always on): `[1 or N, C]`."""
        assert self.switches is not None
        columns = self.switches.index_select(1, units)
        if len(self.segments) == 1:
            domain = self.segments[0][0]
            return columns[domain : domain + 1]
        return columns.index_select(0, self.rows)


def route(domains: Sequence[tuple[int, int]] | torch.Tensor, device: torch.device) -> Routing:
    """Routing of a batch given as `(domain, count)` runs or as one domain per image `[N]`."""
    if isinstance(domains, torch.Tensor):
        values, counts = torch.unique_consecutive(domains.cpu(), return_counts=True)
        runs = tuple(zip(values.tolist(), counts.tolist(), strict=True))
        return Routing(runs, domains.to(device), None)
    runs = tuple((int(d), int(n)) for d, n in domains)
    # Filled on the device: a copy to a GPU would wait for all that it still has to do.
    rows = torch.cat([torch.full((n,), d, device=device) for d, n in runs])
    return Routing(runs, rows, None)
