"""Binary masks over the trunk's weights, plain and affine.

Piggyback: Mallya, Davis and Lazebnik 2018, "Piggyback: Adapting a Single Network to Multiple Tasks
by Learning to Mask Weights", arXiv:1801.06519, `W_d = W ∘ M`. Affine: Mancini, Ricci, Caputo and
Rota Bulò 2020, "Boosting Binary Masks for Multi-Domain Learning through Affine Transformations",
arXiv:2103.13894, `W_d = k0·W + k1·1 + k2·M + k3·W∘M` with numbers for each layer or each of its
filters; its simple form has k3 = 0. M is 1 where a real score is positive, and the scores get M's
gradient unchanged, or times the slope of a sigmoid.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from prunion.runtime.bundle import pack_bits
from prunion.trainer.config import TrainConfig
from prunion.trainer.methods.adapter import NUMBER_BITS, WeightAdapter, key_of_weight, plain

__all__ = ["PIGGYBACK", "MaskAdapter", "MaskForm", "affine_form"]

# Piggyback's scores of 1e-2 over a threshold of 5e-3, counted from the threshold.
PIGGYBACK_START = 5e-3
AFFINE_START = (1e-4, 2e-4)  # drawn evenly between them
Four = tuple[float, float, float, float]
Learns = tuple[bool, bool, bool, bool]


@dataclass(frozen=True)
class MaskForm:
    """What becomes of W and M.

    Attributes:
        start: k0 … k3 at the start.
        learns: which of them learn.
        bare: the same of layers without a BatchNorm behind them, where k0 is not scaled back.
        by_filter: whether each filter has numbers of its own, or a layer's share theirs.
        sigmoid: whether scores get the gradient of a sigmoid of theirs.
        drawn: whether scores start at a little noise, as the affine paper's.
    """

    start: Four
    learns: Learns
    bare: Learns
    by_filter: bool = False
    sigmoid: bool = False
    drawn: bool = True


PIGGYBACK = MaskForm((0, 0, 0, 1), (False,) * 4, (False,) * 4, drawn=False)


def affine_form(train: TrainConfig) -> MaskForm:
    """The form that a run's keys `affine…` say.

    What learns starts where W_d is W while every bit is on: k1 and k2 at 0, and of k0 and k3 the
    one that is not given takes up what the other leaves of 1.
    """
    given = (train.affine_k0, train.affine_k1, train.affine_k2, train.affine_k3)
    usual = (False, True, True, train.affine == "full")
    pairs = list(zip(given, usual, strict=True))
    learns = [k == "learned" or (k == "auto" and auto) for k, auto in pairs]
    bare = [train.affine_k0 in ("auto", "learned"), *learns[1:]]
    k0, k1, k2, k3 = (k if isinstance(k, (int, float)) else None for k in given)
    if k0 is None:
        k0 = 1.0 if k3 is None or not learns[0] else 1.0 - k3
    if k3 is None:
        k3 = 1.0 - k0 if learns[3] else 0.0
    return MaskForm(
        (k0, k1 or 0.0, k2 or 0.0, k3),
        tuple(learns),  # type: ignore[arg-type]
        tuple(bare),  # type: ignore[arg-type]
        by_filter=train.affine_numbers == "filter",
        sigmoid=train.affine_gradient == "sigmoid",
    )


class MaskAdapter(WeightAdapter):
    """A mask of each weight and, where affine, its numbers, for every domain."""

    def __init__(
        self,
        shared: Mapping[str, torch.Tensor],
        domains: int,
        form: MaskForm,
        bare: Collection[str] = (),
    ) -> None:
        """Every mask on.

        Args:
            shared: the trunk's weights by name.
            bare: those of layers without a BatchNorm behind them.
        """
        super().__init__()
        self.names, self.form = tuple(shared), form
        self.scores, self.k = nn.ParameterDict(), nn.ParameterDict()
        self.learns: dict[str, Learns] = {}
        for name, weight in shared.items():
            # Flat: torch takes five axes for a volume when a network's memory is laid out anew.
            scores = torch.full((domains, weight.numel()), PIGGYBACK_START)
            if form.drawn:
                scores.uniform_(*AFFINE_START)
            self.scores[key_of_weight(name)] = nn.Parameter(scores)
            learns = self.learns[name] = form.bare if name in bare else form.learns
            start = torch.tensor(form.start, dtype=torch.float32)
            if form.by_filter:
                start = start[:, None].repeat(1, len(weight))
            rows = start.repeat(domains, *[1] * start.dim())
            self.k[key_of_weight(name)] = nn.Parameter(rows, requires_grad=any(learns))

    def weights(self, shared: Mapping[str, torch.Tensor], domain: int) -> dict[str, torch.Tensor]:
        """`k0·W + k1 + k2·M + k3·W∘M` of every weight by name; gradients as in the paper."""
        found = {}
        for name, learns in self.learns.items():
            weight = shared[name]
            scores = self.scores[key_of_weight(name)][domain].view(weight.shape)
            soft = scores.sigmoid() if self.form.sigmoid else scores
            # 1 or 0 exactly, with the gradient of the other.
            mask = (scores > 0).to(scores.dtype) + (soft - soft.detach())
            numbers = self.k[key_of_weight(name)][domain].unbind()
            if self.form.by_filter:
                numbers = tuple(k.view(-1, *[1] * (weight.dim() - 1)) for k in numbers)
            pairs = zip(numbers, learns, strict=True)
            k0, k1, k2, k3 = (k if own else k.detach() for k, own in pairs)
            found[name] = k0 * weight + k1 + k2 * mask + k3 * weight * mask
        return found

    def stored(self, domain: int) -> dict[str, np.ndarray]:
        """The mask's bits and, where affine, the numbers."""
        found = {}
        for name in self.names:
            mask = (self.scores[key_of_weight(name)][domain].detach() > 0).cpu().numpy()
            found[f"mask:{name}"] = pack_bits(mask)
            if self.form.drawn:
                found[f"numbers:{name}"] = plain(self.k[key_of_weight(name)][domain])
        return found

    def groups(self, train: TrainConfig) -> list[dict[str, Any]]:
        """Adam for masks and numbers, as the papers have it."""
        own = [p for p in self.parameters() if p.requires_grad]
        return [{"params": own, "peak": train.switch_lr, "weight_decay": 0.0}]

    def bits(self) -> int:
        """One for each weight, 32 for each number that learns."""
        masks = sum(int(scores[0].numel()) for scores in self.scores.values())
        each = {name: int(self.k[key_of_weight(name)][0, 0].numel()) for name in self.names}
        return masks + NUMBER_BITS * sum(sum(own) * each[n] for n, own in self.learns.items())
