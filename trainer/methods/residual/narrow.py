"""Adapters of low rank beside convolutions: `y = f∗x + B_d∗(A_d∗x)`, both 1×1.

The parallel adapters of Rebuffi, Bilen and Vedaldi 2018, "Efficient parametrization of multi-domain
deep neural networks", arXiv:1803.10082, section 3.1.2, whose `α_d = B_d·A_d` is of rank r.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from prunion.trainer.config import Phase, TrainConfig
from prunion.trainer.methods.adapter import SmallMatrices, key_of_weight
from prunion.trainer.methods.lora import LowRankPairs
from prunion.trainer.methods.residual.parallel import ParallelAdapters

__all__ = ["NarrowAdapters"]


class NarrowAdapters(LowRankPairs, ParallelAdapters):
    """A `[D, r, I]` and B `[D, O, r]` beside each of the convolutions."""

    tunes = True
    part = "centre_"

    def __init__(
        self, train: TrainConfig, shared: Mapping[str, torch.Tensor], domains: int
    ) -> None:
        """The rank is at most what a matrix has itself."""
        super().__init__(train, {}, domains)
        centres = {name: weight.detach()[:, :, 0, 0] for name, weight in shared.items()}
        self.draw(train.adapter_rank, centres, domains)

    @property
    def domains(self) -> int:
        """How many have a row."""
        return len(next(iter(self.up.values())))

    def _centre(self, name: str, domain: int) -> torch.Tensor:
        return self.product(name, domain)

    def matrices(self) -> Mapping[str, SmallMatrices]:
        """Of low rank."""
        keys = {name: key_of_weight(name) for name in self.names}
        return {
            name: SmallMatrices("beside", up=self.up[key], down=self.down[key])
            for name, key in keys.items()
        }

    def penalty(
        self, domains: Sequence[int], images: Sequence[int], phase: Phase
    ) -> torch.Tensor | None:
        """None: the optimiser has the decay."""
        return None
