"""Adapters of low rank beside convolutions: `y = f∗x + B_d∗(A_d∗x)`, both 1×1.

The parallel adapters of Rebuffi, Bilen and Vedaldi 2018, "Efficient parametrization of multi-domain
deep neural networks", arXiv:1803.10082, section 3.1.2, whose `α_d = B_d·A_d` is of rank r as in Hu
et al. 2022, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685, eq. 3: A_d is
`[r, I]` and drawn, B_d is `[O, r]` and starts at 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from prunion.trainer.config import Phase, TrainConfig
from prunion.trainer.methods.adapter import (
    NUMBER_BITS,
    SmallMatrices,
    key_of_weight,
    numbers_in,
    plain,
)
from prunion.trainer.methods.residual.parallel import ParallelAdapters

__all__ = ["NarrowAdapters"]


class NarrowAdapters(ParallelAdapters):
    """A `[D, r, I]` and B `[D, O, r]` beside each of the convolutions."""

    tunes = True

    def __init__(
        self, train: TrainConfig, shared: Mapping[str, torch.Tensor], domains: int
    ) -> None:
        """The rank is at most what a matrix has itself."""
        super().__init__(train, {}, domains)
        self.names = tuple(shared)
        self.up, self.down = nn.ParameterDict(), nn.ParameterDict()
        for name, weight in shared.items():
            outputs, inputs = weight.shape[:2]
            rank = min(train.adapter_rank, outputs, inputs)
            bound = math.sqrt(1 / inputs)
            drawn = weight.new_empty(domains, rank, inputs).uniform_(-bound, bound)
            self.up[key_of_weight(name)] = nn.Parameter(weight.new_zeros(domains, outputs, rank))
            self.down[key_of_weight(name)] = nn.Parameter(drawn)

    @property
    def domains(self) -> int:
        """How many have a row."""
        return len(next(iter(self.up.values())))

    def _centre(self, name: str, domain: int) -> torch.Tensor:
        key = key_of_weight(name)
        product: torch.Tensor = self.up[key][domain] @ self.down[key][domain]
        return product

    def stored(self, domain: int) -> dict[str, np.ndarray]:
        """B_d and A_d."""
        found = {}
        for name in self.names:
            found[f"centre_up:{name}"] = plain(self.up[key_of_weight(name)][domain])
            found[f"centre_down:{name}"] = plain(self.down[key_of_weight(name)][domain])
        return found

    def matrices(self) -> Mapping[str, SmallMatrices]:
        """Of low rank."""
        keys = {name: key_of_weight(name) for name in self.names}
        return {
            name: SmallMatrices("beside", up=self.up[key], down=self.down[key])
            for name, key in keys.items()
        }

    def bits(self) -> int:
        """32 for each number of both."""
        return NUMBER_BITS * numbers_in(self.up, self.down)

    def groups(self, train: TrainConfig) -> list[dict[str, Any]]:
        """AdamW, as low rank is learned."""
        own, decay = list(self.parameters()), train.weight_decay
        return [{"params": own, "peak": train.own_adapter_lr, "weight_decay": decay}]

    def penalty(
        self, domains: Sequence[int], images: Sequence[int], phase: Phase
    ) -> torch.Tensor | None:
        """None: the optimiser has the decay."""
        return None
