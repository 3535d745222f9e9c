"""Binary masks over the trunk's weights, plain and affine.

Piggyback: Mallya, Davis and Lazebnik 2018, "Piggyback: Adapting a Single Network to Multiple Tasks
by Learning to Mask Weights", arXiv:1801.06519, `W_d = W ∘ M`. Affine: Mancini, Ricci, Caputo and
Rota Bulò 2020, "Boosting Binary Masks for Multi-Domain Learning through Affine Transformations",
arXiv:2103.13894, `W_d = k0·W + k1·1 + k2·M + k3·W∘M` with scalars for each layer; its simple form
has k3 = 0. M is 1 where a real score is positive, and the scores get M's gradient unchanged.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from prunion.runtime.bundle import pack_bits
from prunion.trainer.config import TrainConfig
from prunion.trainer.methods.adapter import NUMBER_BITS, WeightAdapter, key_of_weight, plain

__all__ = ["MaskAdapter", "MaskForm"]

MaskForm = Literal["piggyback", "simple", "full"]

# Piggyback's scores of 1e-2 over a threshold of 5e-3, counted from the threshold.
PIGGYBACK_START = 5e-3
AFFINE_START = (1e-4, 2e-4)  # drawn evenly between them
# What k0 … k3 start at, and which of them learn. k0 scales what BatchNorm scales back: it learns
# only where no BatchNorm follows.
STARTS = {"piggyback": (0.0, 0.0, 0.0, 1.0), "simple": (1.0, 0, 0, 0), "full": (1.0, 0, 0, 0)}
LEARNS = {
    "piggyback": (False, False, False, False),
    "simple": (False, True, True, False),
    "full": (False, True, True, True),
}


class MaskAdapter(WeightAdapter):
    """A mask of each weight and, where affine, four numbers of each layer, for every domain."""

    def __init__(
        self,
        shared: Mapping[str, torch.Tensor],
        domains: int,
        form: MaskForm,
        bare: Collection[str] = (),
    ) -> None:
        """Every mask on: affine starts as the trunk, and so does Piggyback.

        Args:
            shared: the trunk's weights by name.
            bare: those of layers without a BatchNorm behind them.
        """
        super().__init__()
        self.names, self.form = tuple(shared), form
        self.scores, self.k = nn.ParameterDict(), nn.ParameterDict()
        self.learns: dict[str, tuple[bool, ...]] = {}
        learns: tuple[bool, ...]
        for name, weight in shared.items():
            # Flat: torch takes five axes for a volume when a network's memory is laid out anew.
            scores = torch.full((domains, weight.numel()), PIGGYBACK_START)
            if form != "piggyback":
                scores.uniform_(*AFFINE_START)
            self.scores[key_of_weight(name)] = nn.Parameter(scores)
            learns = LEARNS[form]
            if form != "piggyback" and name in bare:
                learns = (True, *learns[1:])
            self.learns[name] = learns
            self.k[key_of_weight(name)] = nn.Parameter(
                torch.tensor(STARTS[form]).repeat(domains, 1), requires_grad=any(learns)
            )

    def weights(self, shared: Mapping[str, torch.Tensor], domain: int) -> dict[str, torch.Tensor]:
        """`k0·W + k1 + k2·M + k3·W∘M` of every weight by name; gradients as in the paper."""
        found = {}
        for name, learns in self.learns.items():
            weight = shared[name]
            scores = self.scores[key_of_weight(name)][domain].view(weight.shape)
            # 1 or 0 exactly, with the gradient of the score itself.
            mask = (scores > 0).to(scores.dtype) + (scores - scores.detach())
            numbers = self.k[key_of_weight(name)][domain].unbind()
            pairs = zip(numbers, learns, strict=True)
            k0, k1, k2, k3 = (k if own else k.detach() for k, own in pairs)
            found[name] = k0 * weight + k1 + k2 * mask + k3 * weight * mask
        return found

    def stored(self, domain: int) -> dict[str, np.ndarray]:
        """The mask's bits and, where affine, the four numbers."""
        found = {}
        for name in self.names:
            mask = (self.scores[key_of_weight(name)][domain].detach() > 0).cpu().numpy()
            found[f"mask:{name}"] = pack_bits(mask)
            if self.form != "piggyback":
                found[f"numbers:{name}"] = plain(self.k[key_of_weight(name)][domain])
        return found

    def groups(self, train: TrainConfig) -> list[dict[str, Any]]:
        """Adam for masks and numbers, as the papers have it."""
        own = [p for p in self.parameters() if p.requires_grad]
        return [{"params": own, "peak": train.switch_lr, "weight_decay": 0.0}]

    def bits(self) -> int:
        """One for each weight, 32 for each number that learns."""
        masks = sum(int(scores[0].numel()) for scores in self.scores.values())
        return masks + NUMBER_BITS * sum(sum(learns) for learns in self.learns.values())
