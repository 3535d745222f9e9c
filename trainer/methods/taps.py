"""Task-adaptive parameter sharing: a domain's own weights for the layers that it picks.

Wallingford et al. 2022, "Task Adaptive Parameter Sharing for Multi-Task Learning",
arXiv:2203.16708: `W_d = W + 1[s ≥ τ]·Δ` with one score s a layer, which gets the gate's gradient
unchanged, and a charge of `λ/L · Σ|s|` on the L layers, from the end of warm-up on.

The score of a layer worth having hovers at τ: on, it feels little but the charge; off, the gradient
of all that Δ would add. So such layers switch every few steps for as long as scores learn, and
BatchNorm's statistics are of no one network. Here scores learn until settling begins; each domain
then keeps the layers that were on in most of the last steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from prunion.trainer.config import Phase, TrainConfig
from prunion.trainer.methods.adapter import NUMBER_BITS, WeightAdapter, key_of_weight, plain

__all__ = ["PickedLayers"]

START, THRESHOLD = 0.15, 0.1
SPAN = 50  # of the domain's steps in which a layer was on, how many count; of fewer all alike


class PickedLayers(WeightAdapter):
    """Δ of every weight, 0 at the start, and a score of each for every domain.

    Attributes:
        often: in what share of the domain's last steps each layer was on, `[D, L]`.
        counted: how many steps each domain has had, `[D]`.
        fixed: whether the layers are picked for good; their scores are then 0 or as at the start.
    """

    often: torch.Tensor
    counted: torch.Tensor
    fixed: torch.Tensor

    def __init__(
        self, train: TrainConfig, shared: Mapping[str, torch.Tensor], domains: int
    ) -> None:
        super().__init__()
        self.names, self.charge = tuple(shared), train.taps_lambda
        self.shapes = {name: weight.shape for name, weight in shared.items()}
        self.delta, self.scores = nn.ParameterDict(), nn.ParameterDict()
        for name, weight in shared.items():
            key = key_of_weight(name)
            self.delta[key] = nn.Parameter(weight.new_zeros(domains, weight.numel()))
            self.scores[key] = nn.Parameter(weight.new_full((domains,), START))
        self.register_buffer("often", torch.ones(domains, len(self.names)))
        self.register_buffer("counted", torch.zeros(domains, dtype=torch.int64))
        self.register_buffer("fixed", torch.tensor(False))

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        """Checkpoints of before layers were picked for good keep those that were on at the end.

        Those of before steps were counted go on as if all of the span were behind them.
        """
        state.setdefault(f"{prefix}often", torch.ones_like(self.often))
        state.setdefault(f"{prefix}counted", torch.full_like(self.counted, SPAN))
        state.setdefault(f"{prefix}fixed", torch.tensor(True))
        super()._load_from_state_dict(state, prefix, *args)

    def weights(self, shared: Mapping[str, torch.Tensor], domain: int) -> dict[str, torch.Tensor]:
        """W, and where a layer is picked Δ with it."""
        found = {}
        for name in self.names:
            key = key_of_weight(name)
            score = self.scores[key][domain]
            gate = (score >= THRESHOLD).to(score.dtype) + (score - score.detach())
            found[name] = shared[name] + gate * self.delta[key][domain].view(self.shapes[name])
        return found

    def picked(self, domain: int) -> list[str]:
        """Weights that the domain has for itself."""
        scores = {n: self.scores[key_of_weight(n)].detach()[domain] for n in self.names}
        return [name for name, score in scores.items() if float(score) >= THRESHOLD]

    def stored(self, domain: int) -> dict[str, np.ndarray]:
        """Δ of the layers that it picked."""
        return {
            f"added:{name}": plain(self.delta[key_of_weight(name)][domain].view(self.shapes[name]))
            for name in self.picked(domain)
        }

    def bits(self) -> int:
        """32 for each number of a picked layer, on average over the domains."""
        return round(self.extra_bits() / self.domains)

    def extra_bits(self) -> int:
        """What training decided."""
        picked = [name for domain in range(self.domains) for name in self.picked(domain)]
        return NUMBER_BITS * sum(self.shapes[name].numel() for name in picked)

    @torch.no_grad()
    def stepped(self, domains: Sequence[int]) -> None:
        """Count which layers of these domains are on: where others had the turn nothing moved."""
        if self.fixed:
            return
        for domain in domains:
            scores = torch.stack([self.scores[key_of_weight(n)][domain] for n in self.names])
            self.counted[domain] += 1
            # The plain mean at first: from any first value a short run would not come away.
            pace = 1 / self.counted[domain].clamp(max=SPAN)
            self.often[domain].lerp_((scores >= THRESHOLD).to(self.often), pace)

    @torch.no_grad()
    def advance(self, shared: Mapping[str, torch.Tensor], task: int, phase: Phase) -> bool:
        """Pick for good once settling begins, True if it did."""
        if phase != "settle":
            return False
        for score in self.scores.values():  # of a run that goes on, too
            score.requires_grad_(False)
        if self.fixed:
            return False
        self.fixed.fill_(True)
        for name, often in zip(self.names, self.often.T, strict=True):
            self.scores[key_of_weight(name)].copy_(START * (often >= 0.5))
        return True

    def keep_rows(self, rows: torch.Tensor) -> None:
        """Their shares of steps too."""
        super().keep_rows(rows)
        self.often, self.counted = self.often[rows], self.counted[rows]

    def penalty(
        self, domains: Sequence[int], images: Sequence[int], phase: Phase
    ) -> torch.Tensor | None:
        """λ times the mean score of each of the step's domains, while they learn on the ramp."""
        if phase != "ramp" or not self.charge:
            return None
        scores = torch.stack(list(self.scores.values()))
        return self.charge * scores[:, list(domains)].abs().mean(0).sum()
