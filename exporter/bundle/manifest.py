"""The manifest's parts, worked out from a checkpoint: budget, counts, input, origin.

`counts` and `widths` tell what the file holds; beside them stands what the papers would count
(`trainer.cost.paper_account`).
"""

from __future__ import annotations

from datetime import datetime, timezone

import numpy as np

from prunion.exporter.slim import SlimNet
from prunion.runtime.bundle import (
    BudgetAccount,
    ImageInput,
    Provenance,
    Rounding,
    UnitTable,
    counts_to_json,
)
from prunion.runtime.errors import BudgetError
from prunion.trainer.config import BudgetConfig
from prunion.trainer.cost import (
    PricedBudget,
    budget_account,
    least_limit,
    make_budget,
    make_pricer,
    shown_cost,
    used_cost,
)
from prunion.trainer.methods import NUMBER_BITS, WeightAdapter
from prunion.trainer.network import Checkpoint, versions

__all__ = [
    "budget_of",
    "counts",
    "image_input",
    "provenance",
    "rounding",
    "widths",
]


def budget_of(
    loaded: Checkpoint,
    alive: np.ndarray,
    file_bytes: int | None = None,
    slices: WeightAdapter | None = None,
) -> BudgetAccount:
    """The budget asked for and what keeping `alive` `[U]` costs.

    Args:
        file_bytes: size of the fp32 graph once it is written, for a budget in bytes; without it
            the upper bound that training kept to.
        slices: the adapter whose domains choose slices, as it was before an only domain's weights
            took the trunk's place.

    Raises:
        BudgetError: it costs more than the budget allows, in a run that promised it.
    """
    config = loaded.config.budget
    train = loaded.config.train
    budget = make_budget(config, make_pricer(config, loaded.net), cuts=train.traits.prunes)
    value = bound = used_cost(budget.pricer, alive, slices)
    if config.kind == "bytes" and file_bytes is not None:
        value = file_bytes
    if not value <= budget.allowed and train.cut == "union" and train.traits.prunes:
        if bound <= budget.allowed:
            raise BudgetError(_larger(config, budget, value, bound))
        settled = loaded.meta.get("phase") == "settle"
        cause = "round_to, the budget or the form of the heads are not those of its training"
        if config.kind == "macs":
            cause += ", or an earlier prunion counted fewer MACs then: train it again"
        raise BudgetError(
            f"the checkpoint's switches cost {shown_cost(config.kind, value)} with widths in "
            f"multiples of {budget.round_to}, its budget allows "
            f"{shown_cost(config.kind, budget.allowed)}: "
            + (cause if settled else "the run stopped before it settled; resume it to its end")
        )
    return budget_account(config, budget, value, slices=slices is not None)


def _larger(config: BudgetConfig, budget: PricedBudget, size: float, bound: float) -> str:
    """Of a file that holds more around the tensors than training counted with."""
    fits = least_limit(config, size, budget.pricer.backbone)
    return (
        f"the exported file has {size:,.0f} bytes, {size - budget.allowed:,.0f} more than its "
        f"budget allows ({budget.allowed:,.0f}): torch's exporter writes more around the tensors "
        f"than training counted with, which was {bound:,.0f} bytes in all. It would meet a limit "
        f"of {fits}; export it with the default heads and opset, or train it again, which tries "
        "the export first"
    )


def counts(
    loaded: Checkpoint, slim: SlimNet, table: UnitTable, bank: int
) -> tuple[dict[str, float], dict[str, float]]:
    """The manifest's `params` and `macs`: weights and operations, before and after.

    Args:
        table: the unit table of the graph.
        bank: numbers in the bank.
    """
    full = loaded.net.units.table
    every, left = np.ones(full.count, dtype=bool), np.ones(table.count, dtype=bool)
    heads = sum(p.numel() for p in loaded.net.heads.parameters())
    beside: dict[str, float] = {"heads": heads, "bank": bank}
    run: dict[str, float] = {}
    if slim.adapter_entries:
        positions = {layer.weight: layer.positions for layer in table.layers}
        beside["adapters"] = slim.adapters.numel()
        run["adapters"] = sum(e.size * positions[e.weight] for e in slim.adapter_entries)
    elif loaded.net.adapter is not None:
        beside["own"] = loaded.net.adapter.extra_bits() / NUMBER_BITS
    params = counts_to_json(full.params(every), table.params(left), **beside)
    return params, counts_to_json(full.macs(every), table.macs(left), **run)


def widths(loaded: Checkpoint, table: UnitTable) -> dict[str, tuple[int, int]]:
    """Output channels of every layer, before and after (`table` is the sliced network's)."""
    after = {layer.weight: layer.shape[0] for layer in table.layers}
    return {
        layer.weight.removesuffix(".weight"): (layer.shape[0], after[layer.weight])
        for layer in loaded.net.units.table.layers
    }


def rounding(loaded: Checkpoint, slim: SlimNet) -> Rounding:
    """The multiple of the widths, and per layer the channels that only rounding keeps."""
    unused = np.append(~slim.used.any(axis=0), False)  # slot -1, a channel without a unit, is used
    added = {}
    for layer in slim.table.layers:
        units = slim.table.slots.get((layer.weight, 0))
        if units is not None and unused[units].any():
            added[layer.weight.removesuffix(".weight")] = int(unused[units].sum())
    return Rounding(loaded.config.budget.round_to, added)


def image_input(loaded: Checkpoint) -> ImageInput:
    """Size and preprocessing of the fp32 graph's `image`."""
    shape = loaded.config.input
    return ImageInput(
        height=shape.height,
        width=shape.width,
        mean=shape.mean,
        std=shape.std,
        shorter_side=shape.shorter_side,
        orientation=shape.orientation,
    )


def provenance(loaded: Checkpoint) -> Provenance:
    """Who made this, with what, from which run."""
    here = versions()
    return Provenance(
        prunion=here.get("prunion", ""),
        versions=here,
        trained_with=dict(loaded.meta["versions"]),
        seed=loaded.config.seed,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        config=loaded.config.to_json(),
        model_sha256=str(loaded.meta["model_sha256"]),
    )
