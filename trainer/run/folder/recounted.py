"""A run of an earlier prunion, which counted adapters otherwise that a bundle folds away."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from prunion.runtime.base import shown
from prunion.runtime.errors import CheckpointError
from prunion.trainer.config import has_own_weights
from prunion.trainer.learning import Training

__all__ = ["recounted", "tell_count"]

log = logging.getLogger(__name__)


def recounted(stored: Any, training: Training, any_limit: bool) -> bool:
    """Whether the prices that a state was saved with differ by the count of adapters alone."""
    config, now = training.config, [training.budget.full, training.budget.allowed]
    if not has_own_weights(vars(config.train)) or config.budget.kind == "latency":
        return False
    if config.train.traits.prunes and len(config.domains) > 1:  # a bundle holds those
        return False
    before = stored.get("cost")
    if not isinstance(before, list) or before[:1] == now[:1]:
        return False
    return any_limit or before[1:] == now[1:]  # of the backbone, so it is the same one


def tell_count(path: Path, before: float, training: Training) -> None:
    """Say that a run goes on by another count, `before` in the state.

    Raises CheckpointError where it cuts by it.
    """
    told = f"counted adapters otherwise (the network cost {shown(before)}, and as a bundle holds "
    told += f"it {shown(training.budget.full)})"
    if training.config.train.traits.prunes:
        raise CheckpointError(
            f"{path} is of an earlier prunion, which {told}, and what is cut follows from it: "
            "finish the run with the prunion that began it, or start it anew in another folder"
        )
    if training.processes.first:
        log.warning("%s is of an earlier prunion, which %s: it goes on by this count", path, told)
