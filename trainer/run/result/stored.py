"""What a run's file holds where domains have weights of their own, as the papers count it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from prunion.trainer.config import TrainConfig, has_own_weights
from prunion.trainer.cost import paper_account
from prunion.trainer.learning import Training
from prunion.trainer.methods import NUMBER_BITS
from prunion.trainer.network import counted_copy

__all__ = ["COUNTED", "params_share", "stored_account"]

COUNTED = "as the papers count, every domain's own weights and BatchNorm with them"


def stored_account(training: Training) -> dict[str, float] | None:
    """The account that the exported bundle's manifest has of a finished run.

    Returns:
        As multiples of the backbone's: `params`, `params_whole` with every channel and slice,
        `flop` of a domain and `flop_union`. None where domains have no weights of their own, and
        in other processes than the first.
    """
    config = training.config
    if not has_own_weights(vars(config.train)) or not training.processes.first:
        return None
    net, table = counted_copy(training.net, config), training.net.units.table
    alive = table.round_up(training.alive(), config.budget.round_to)
    every = np.ones(table.count, dtype=bool)
    found, whole = (paper_account(net, x, training.names, config.train) for x in (alive, every))
    unused = 0 if net.adapter is None else net.adapter.unused_weights(table, every)
    return {
        "params": found.params,
        "params_whole": whole.params + NUMBER_BITS * unused / whole.bits_backbone,
        "flop": found.flop,
        "flop_union": found.flop_union,
    }


def params_share(config: TrainConfig, result: Mapping[str, Any]) -> float | None:
    """A run's parameters as a multiple of the backbone's, of its result as JSON.

    None where domains have weights of their own and an earlier prunion did not count them.
    """
    stored = result.get("stored")
    if stored is not None:
        return float(stored["params"])
    before, after = result["params"]
    return None if has_own_weights(vars(config)) else after / before
