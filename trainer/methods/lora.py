"""Low-rank convolution adapters: `W_d = W + B_d·A_d`.

Hu et al. 2022, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685, eq. 3, on
convolutions as flattened filters: A_d is `[r, I·k·k]` and drawn, B_d is `[O, r]` and starts at 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from prunion.trainer.config import TrainConfig
from prunion.trainer.methods.adapter import NUMBER_BITS, WeightAdapter, key_of_weight, plain

__all__ = ["LowRankAdapters"]


class LowRankAdapters(WeightAdapter):
    """A of rank r and B of every domain, for each of the weights."""

    def __init__(self, rank: int, shared: Mapping[str, torch.Tensor], domains: int) -> None:
        """The rank is at most what a weight has itself."""
        super().__init__()
        self.names = tuple(shared)
        self.up, self.down = nn.ParameterDict(), nn.ParameterDict()
        for name, weight in shared.items():
            outputs, inputs = len(weight), weight[0].numel()
            own = min(rank, outputs, inputs)
            bound = math.sqrt(1 / inputs)
            drawn = weight.new_empty(domains, own, inputs).uniform_(-bound, bound)
            self.up[key_of_weight(name)] = nn.Parameter(weight.new_zeros(domains, outputs, own))
            self.down[key_of_weight(name)] = nn.Parameter(drawn)

    def weights(self, shared: Mapping[str, torch.Tensor], domain: int) -> dict[str, torch.Tensor]:
        """`W + B_d·A_d`."""
        found = {}
        for name in self.names:
            key, weight = key_of_weight(name), shared[name]
            product = self.up[key][domain] @ self.down[key][domain]
            found[name] = weight + product.view(weight.shape)
        return found

    def stored(self, domain: int) -> dict[str, np.ndarray]:
        """B_d and A_d."""
        found = {}
        for name in self.names:
            found[f"up:{name}"] = plain(self.up[key_of_weight(name)][domain])
            found[f"down:{name}"] = plain(self.down[key_of_weight(name)][domain])
        return found

    def groups(self, train: TrainConfig) -> list[dict[str, Any]]:
        """AdamW, as the paper has it."""
        own = list(self.parameters())
        decay = train.weight_decay
        return [{"params": own, "peak": train.own_adapter_lr, "weight_decay": decay}]

    def bits(self) -> int:
        """32 for each number of both."""
        return NUMBER_BITS * sum(p[0].numel() for p in self.parameters())
