"""A 1×1 convolution beside each filter bank, and what all domains' have in common.

Parallel residual adapters: Rebuffi, Bilen and Vedaldi 2018, "Efficient parametrization of
multi-domain deep neural networks", arXiv:1803.10082, section 3.1.2: `y = f∗x + α_d∗x`, which is one
convolution whose kernel has α_d added to its centre: exact, and undone by subtracting it. Joint
compression, section 3.4, eq. 1: `[α_1 … α_T] = U·Σ·V`, of which `β = U_K·Σ_K` is shared and frozen
and `γ_d`, block d of V_K, is tuned on.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from prunion.trainer.config import Phase, TrainConfig
from prunion.trainer.methods.adapter import (
    NUMBER_BITS,
    SmallMatrices,
    WeightAdapter,
    key_of_weight,
    numbers_in,
    plain,
)

__all__ = ["CompressedAdapters", "ParallelAdapters", "decay_of", "squares"]

# The paper's decay: strong on small sets, weak on large ones, by their training images.
DECAYS = ((5_000, 2e-3), (30_000, 5e-4))
LEAST_DECAY = 1e-4
TUNED_ON = 0.1  # γ's learning rate as a share of α's


def decay_of(train: TrainConfig, images: int) -> float:
    """Weight decay of a domain's adapters, as the run says or by its training images."""
    if not isinstance(train.adapter_decay, str):
        return train.adapter_decay
    return next((decay for most, decay in DECAYS if images < most), LEAST_DECAY)


def squares(
    train: TrainConfig,
    rows: Sequence[nn.ParameterDict],
    domains: Sequence[int],
    images: Sequence[int],
) -> torch.Tensor:
    """What the gradient of is the decay of `domains` alone: `½ Σ_d decay_d · Σ θ_d²`."""
    total = torch.zeros(())
    for domain in domains:
        own = sum((value[domain].square().sum() for row in rows for value in row.values()), total)
        total = total + 0.5 * decay_of(train, images[domain]) * own
    return total


class ParallelAdapters(WeightAdapter):
    """α of every domain `[D, O, I]` beside each of the convolutions; 0 at the start."""

    def __init__(
        self,
        train: TrainConfig,
        shared: Mapping[str, torch.Tensor],
        domains: int,
        dropped: Collection[str] = (),
    ) -> None:
        """Adapters beside the convolutions `shared`; `train.adapter_dropout` acts on `dropped`."""
        super().__init__()
        self.names, self.train_config, self.dropped = tuple(shared), train, frozenset(dropped)
        self.alpha = nn.ParameterDict(
            {
                key_of_weight(name): nn.Parameter(weight.new_zeros(domains, *weight.shape[:2]))
                for name, weight in shared.items()
            }
        )

    def weights(self, shared: Mapping[str, torch.Tensor], domain: int) -> dict[str, torch.Tensor]:
        """W with α_d in the middle of its kernel.

        In training whole input channels of α are dropped, the same ones for all images of the
        domain in a step.
        """
        return {name: self._added(name, shared[name], domain) for name in self.names}

    def _added(self, name: str, weight: torch.Tensor, domain: int) -> torch.Tensor:
        centre, rate = self._centre(name, domain), self.train_config.adapter_dropout
        if self.training and rate and name in self.dropped:
            centre = centre * F.dropout(centre.new_ones(centre.shape[1]), rate)
        height, width = (size // 2 for size in weight.shape[2:])
        return weight + F.pad(centre[..., None, None], (width, width, height, height))

    def _centre(self, name: str, domain: int) -> torch.Tensor:
        alpha: torch.Tensor = self.alpha[key_of_weight(name)][domain]
        return alpha

    def stored(self, domain: int) -> dict[str, np.ndarray]:
        """α_d."""
        return {f"centre:{name}": plain(self._centre(name, domain)) for name in self.names}

    def matrices(self) -> Mapping[str, SmallMatrices]:
        """α, whole."""
        return {n: SmallMatrices("beside", self.alpha[key_of_weight(n)]) for n in self.names}

    def bits(self) -> int:
        """32 for each number of α."""
        return NUMBER_BITS * numbers_in(self.alpha)

    def penalty(
        self, domains: Sequence[int], images: Sequence[int], phase: Phase
    ) -> torch.Tensor | None:
        """The decay of the step's own domains."""
        return squares(self.train_config, self._rows(), domains, images)


class CompressedAdapters(ParallelAdapters):
    """α until settling, then `β·γ_d` with β `[O, K]` frozen and γ `[D, K, I]` tuned on."""

    compressed: torch.Tensor

    def __init__(
        self,
        train: TrainConfig,
        shared: Mapping[str, torch.Tensor],
        domains: int,
        dropped: Collection[str] = (),
    ) -> None:
        super().__init__(train, shared, domains, dropped)
        self.gamma = nn.ParameterDict()
        for name, weight in shared.items():
            outputs, inputs = weight.shape[:2]
            rank = min(max(1, round(train.svd_share * outputs)), outputs, domains * inputs)
            self.register_buffer(f"beta_{key_of_weight(name)}", weight.new_zeros(outputs, rank))
            rows = weight.new_zeros(domains, rank, inputs)
            self.gamma[key_of_weight(name)] = nn.Parameter(rows)
        self.register_buffer("compressed", torch.tensor(False))

    def _centre(self, name: str, domain: int) -> torch.Tensor:
        if not self.compressed:
            return super()._centre(name, domain)
        gamma: torch.Tensor = self.gamma[key_of_weight(name)][domain]
        return self._beta(name) @ gamma

    def _beta(self, name: str) -> torch.Tensor:
        return self.get_buffer(f"beta_{key_of_weight(name)}")

    @torch.no_grad()
    def advance(self, shared: Mapping[str, torch.Tensor], task: int, phase: Phase) -> bool:
        """Compress once, when settling begins; True if it did."""
        if phase != "settle" or self.compressed:
            return False
        for name in self.names:
            alpha = self.alpha[key_of_weight(name)]
            domains, outputs, inputs = alpha.shape
            joined = alpha.permute(1, 0, 2).reshape(outputs, domains * inputs)
            # Its signs are arbitrary and its last digits a library's; β and γ fit each other.
            u, sizes, v = torch.linalg.svd(joined.cpu().double(), full_matrices=False)
            beta, gamma = self._beta(name), self.gamma[key_of_weight(name)]
            rank = beta.shape[1]
            beta.copy_(u[:, :rank] * sizes[:rank])
            gamma.copy_(v[:rank].view(rank, domains, inputs).permute(1, 0, 2))
            alpha.zero_()
        self.compressed.fill_(True)
        return True

    def stored(self, domain: int) -> dict[str, np.ndarray]:
        """γ_d; of a run that stopped before it compressed, α_d."""
        if not self.compressed:
            return super().stored(domain)
        return {
            f"centre_down:{name}": plain(self.gamma[key_of_weight(name)][domain])
            for name in self.names
        }

    def matrices(self) -> Mapping[str, SmallMatrices]:
        """None: beside each other, α_d would take the place that β saves."""
        return {}

    def shared_parts(self) -> dict[str, np.ndarray]:
        """β, once there is one."""
        if not self.compressed:
            return {}
        return {f"centre_up:{name}": plain(self._beta(name)) for name in self.names}

    def bits(self) -> int:
        """32 for each number of γ, or of α before."""
        return super().bits() if not self.compressed else NUMBER_BITS * numbers_in(self.gamma)

    def shared_bits(self) -> int:
        """32 for each number of β, once there is one."""
        return (
            int(self.compressed)
            * NUMBER_BITS
            * sum(self._beta(name).numel() for name in self.names)
        )

    def groups(self, train: TrainConfig) -> list[dict[str, Any]]:
        """α as ever, and γ at a tenth of its rate."""
        alpha, gamma = list(self.alpha.values()), list(self.gamma.values())
        peak = train.own_adapter_lr
        return [
            {"params": alpha, "peak": peak, "weight_decay": 0.0, "sgd": True},
            {"params": gamma, "peak": TUNED_ON * peak, "weight_decay": 0.0, "sgd": True},
        ]

    def penalty(
        self, domains: Sequence[int], images: Sequence[int], phase: Phase
    ) -> torch.Tensor | None:
        """The decay of what learns now."""
        rows = [self.gamma if self.compressed else self.alpha]
        return squares(self.train_config, rows, domains, images)
