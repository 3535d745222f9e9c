"""A whole network for each domain: what the scores count errors against.

"Individual fine-tuning" of dos Santos et al. 2023, arXiv:2309.11464, eq. 10: `W_d` is learned
from W on, and nothing is shared.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from prunion.trainer.config import TrainConfig
from prunion.trainer.methods.adapter import NUMBER_BITS, WeightAdapter, key_of_weight, plain

__all__ = ["TunedWeights"]


class TunedWeights(WeightAdapter):
    """All numbers of the trunk once more for every domain, biases among them."""

    def __init__(self, shared: Mapping[str, torch.Tensor], domains: int) -> None:
        super().__init__()
        self.names = tuple(shared)
        self.shapes = {name: weight.shape for name, weight in shared.items()}
        # Flat: torch takes five axes for a volume when a network's memory is laid out anew.
        self.values = nn.ParameterDict(
            {
                key_of_weight(name): nn.Parameter(weight.detach().reshape(1, -1).repeat(domains, 1))
                for name, weight in shared.items()
            }
        )

    def weights(self, shared: Mapping[str, torch.Tensor], domain: int) -> dict[str, torch.Tensor]:
        """The domain's own; W only said where to start."""
        return {name: self._value(name, domain) for name in self.names}

    def stored(self, domain: int) -> dict[str, np.ndarray]:
        """All of it, but for the first domain, whose weights are the bundle's trunk."""
        own = [n for n in self.names if not torch.equal(self._value(n, domain), self._value(n, 0))]
        return {f"value:{name}": plain(self._value(name, domain)) for name in own}

    def base(self, shared: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The first domain's."""
        return {name: self._value(name, 0).detach() for name in self.names}

    def bits(self) -> int:
        """32 for each number."""
        return NUMBER_BITS * sum(shape.numel() for shape in self.shapes.values())

    def extra_bits(self) -> int:
        """Of all domains but the first, which is the trunk."""
        return self.bits() * (self.domains - 1)

    def groups(self, train: TrainConfig) -> list[dict[str, Any]]:
        """As the trunk of any other run."""
        shapes = {key_of_weight(name): shape for name, shape in self.shapes.items()}
        rates = {"peak": train.trunk_lr, "weight_decay": train.weight_decay}
        # In the order in which the values are kept, by which a snapshot knows them.
        own = {"params": list(self.values.values()), "shapes": [shapes[x] for x in self.values]}
        return [{**own, **rates}]

    def _value(self, name: str, domain: int) -> torch.Tensor:
        value: torch.Tensor = self.values[key_of_weight(name)][domain]
        return value.view(self.shapes[name])
