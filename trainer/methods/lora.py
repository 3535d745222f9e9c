"""Low-rank convolution adapters, `W_d = W + B_d·A_d`, and such pairs wherever a domain adds them.

Hu et al. 2022, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685, eq. 3: A_d
is `[r, I]` and drawn, B_d is `[O, r]` and starts at 0; of convolutions as flattened filters, so
that A_d is `[r, I·k·k]`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from prunion.trainer.config import TrainConfig
from prunion.trainer.methods.adapter import (
    NUMBER_BITS,
    WeightAdapter,
    key_of_weight,
    numbers_in,
    plain,
)

__all__ = ["LowRankAdapters", "LowRankPairs"]


class LowRankPairs(WeightAdapter):
    """B `[D, O, r]`, `up`, and A `[D, r, I]`, `down`, of each weight.

    Attributes:
        part: what `stored` says before `up` and `down`.
    """

    part = ""

    def draw(self, rank: int, matrices: Mapping[str, torch.Tensor], domains: int) -> None:
        """Every domain's pairs, of the rank that is asked or else of what a matrix has itself.

        Args:
            matrices: what the products are added to, `[O, I]`.
        """
        self.names = tuple(matrices)
        self.up, self.down = nn.ParameterDict(), nn.ParameterDict()
        for name, matrix in matrices.items():
            outputs, inputs = matrix.shape
            own = min(rank, outputs, inputs)
            bound = math.sqrt(1 / inputs)
            drawn = matrix.new_empty(domains, own, inputs).uniform_(-bound, bound)
            self.up[key_of_weight(name)] = nn.Parameter(matrix.new_zeros(domains, outputs, own))
            self.down[key_of_weight(name)] = nn.Parameter(drawn)

    def product(self, name: str, domain: int) -> torch.Tensor:
        """`B_d·A_d`, `[O, I]`."""
        key = key_of_weight(name)
        product: torch.Tensor = self.up[key][domain] @ self.down[key][domain]
        return product

    def stored(self, domain: int) -> dict[str, np.ndarray]:
        """B_d and A_d."""
        found = {}
        for name in self.names:
            found[f"{self.part}up:{name}"] = plain(self.up[key_of_weight(name)][domain])
            found[f"{self.part}down:{name}"] = plain(self.down[key_of_weight(name)][domain])
        return found

    def groups(self, train: TrainConfig) -> list[dict[str, Any]]:
        """AdamW, as low rank is learned."""
        own, decay = list(self.parameters()), train.weight_decay
        return [{"params": own, "peak": train.own_adapter_lr, "weight_decay": decay}]

    def bits(self) -> int:
        """32 for each number of both."""
        return NUMBER_BITS * numbers_in(self.up, self.down)


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
