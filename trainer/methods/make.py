"""The adapter that a run's method wants, if any."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch

from prunion.trainer.config import TrainConfig
from prunion.trainer.methods.adapter import WeightAdapter
from prunion.trainer.methods.masks import MaskAdapter

__all__ = ["make_adapter"]


def make_adapter(
    train: TrainConfig,
    shared: Mapping[str, torch.Tensor],
    domains: int,
    bare: Collection[str] = (),
) -> WeightAdapter | None:
    """The adapter of `[train] method`, at its neutral value; None where W_d is W.

    Args:
        shared: the trunk's weights by name.
        bare: those of layers without a BatchNorm behind them.
    """
    if train.method == "piggyback":
        return MaskAdapter(shared, domains, "piggyback", bare)
    if train.method == "affine":
        return MaskAdapter(shared, domains, train.affine, bare)
    return None
