"""Recipes for tests: the tiny run by one of them, and one alone, without a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from prunion.trainer.config import TrainConfig, load_config
from prunion.trainer.pruning import make_recipe
from prunion.trainer.run import RunResult, train_run
from tests.support.tiny_run import tiny_run

__all__ = ["recipe", "trained"]


def trained(folder: Path, **train: object) -> RunResult:
    run_file = tiny_run(folder, **train)
    return train_run(load_config(run_file), folder / "out")


def recipe(turns: tuple[int, ...] = (), **train: Any) -> Any:
    """The recipe of a run with these keys of `[train]`, for two domains of four units.

    Args:
        turns: steps of an epoch of each domain's own.
    """
    return make_recipe(
        TrainConfig(**train),
        lambda kept: kept.mean(),
        lambda worth, used: np.ones(4, bool),
        beta=0.5,
        domains=2,
        units=4,
        steps_per_epoch=1,
        turns_per_epoch=turns,
    )
