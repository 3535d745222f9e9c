"""What is advised where a loss or a network is no longer finite."""

from __future__ import annotations

from typing import Any

import pytest

from prunion.runtime.errors import PrunionError
from prunion.trainer.config import TrainConfig
from prunion.trainer.learning.step.joint import check_losses


@pytest.mark.parametrize(
    ("train", "rates"),
    [
        ({}, "lr or trunk_lr"),
        ({"trunk": "frozen"}, "lr"),
        ({"method": "parallel"}, "lr or adapter_lr"),
        ({"method": "affine"}, "lr or switch_lr"),
        ({"adapter_rank": 2}, "lr, trunk_lr or adapter_lr"),
        ({"method": "feature", "head_lr": 0.1}, "head_lr"),
        ({"head_optimiser": "sgd", "trunk": "frozen"}, "lr or head_lr"),
    ],
)
def test_the_rates_that_moved_anything_are_named(train: dict[str, Any], rates: str) -> None:
    """`trunk_lr` was named beside a frozen trunk, and never what moved the adapters."""
    with pytest.raises(PrunionError, match=rf"became nan: lower \[train\] {rates} and start again"):
        check_losses({0: float("nan")}, ["a"], TrainConfig(**train), "step 0", "no state")


@pytest.mark.parametrize("train", [{"adapter_rank": 2}, {"method": "parallel"}])
def test_a_domain_that_joins_later_is_not_told_of_a_rate_that_its_file_may_not_have(
    train: dict[str, Any],
) -> None:
    told = TrainConfig(trunk="frozen", **train)
    with pytest.raises(PrunionError, match=r"lower \[train\] lr and start again"):
        check_losses({0: float("nan")}, ["a"], told, "step 0", "no state", origin="ab")
