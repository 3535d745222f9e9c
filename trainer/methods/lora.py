"""Low-rank convolution adapters: `W_d = W + B_d·A_d`.

Hu et al. 2022, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685, eq. 3, on
convolutions as flattened filters: A_d is `[r, I·k·k]`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from prunion.trainer.methods.low_rank import LowRankPairs

__all__ = ["LowRankAdapters"]


class LowRankAdapters(LowRankPairs):
    """A of rank r and B of every domain, for each of the weights."""

    def __init__(self, rank: int, shared: Mapping[str, torch.Tensor], domains: int) -> None:
        """The rank is at most what a weight has itself."""
        super().__init__()
        flat = {name: weight.detach().reshape(len(weight), -1) for name, weight in shared.items()}
        self.draw(rank, flat, domains)

    def weights(self, shared: Mapping[str, torch.Tensor], domain: int) -> dict[str, torch.Tensor]:
        """`W + B_d·A_d`."""
        return {
            name: shared[name] + self.product(name, domain).view(shared[name].shape)
            for name in self.names
        }
