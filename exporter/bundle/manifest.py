"""What an export says about itself: budget, counts, input and origin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

import numpy as np

from prunion.exporter.slim.network import SlimNet
from prunion.runtime.bundle.unit_table import UnitTable
from prunion.runtime.errors import BudgetError
from prunion.trainer.cost.budget import budget_account, make_budget, shown_cost
from prunion.trainer.cost.prices import make_pricer
from prunion.trainer.network.checkpoint import Checkpoint, versions
from prunion.trainer.network.masked import DomainNet

__all__ = [
    "accounts",
    "budget_of",
    "image_input",
    "norm_operations",
    "paper_accounts",
    "paper_bits",
    "paper_macs",
    "provenance",
    "rounding",
]


def budget_of(
    loaded: Checkpoint, alive: np.ndarray, file_bytes: int | None = None
) -> dict[str, Any]:
    """The budget asked for and what keeping `alive` `[U]` costs.

    Args:
        file_bytes: size of the fp32 graph once it is written, for a budget in bytes; without it
            the upper bound that training kept to.

    Raises:
        BudgetError: it costs more than the budget allows, in a run that promised it.
    """
    config = loaded.config.budget
    budget = make_budget(config, make_pricer(config, loaded.net))
    value = budget.pricer.of(alive)
    if config.kind == "bytes" and file_bytes is not None:
        value = file_bytes
    if value > budget.allowed and loaded.config.train.cut == "union":
        settled = loaded.meta.get("phase") == "settle"
        cause = "round_to, the budget or the form of the heads are not those of its training"
        raise BudgetError(
            f"the checkpoint's switches cost {shown_cost(config.kind, value)} with widths in "
            f"multiples of {budget.round_to}, its budget allows "
            f"{shown_cost(config.kind, budget.allowed)}: "
            + (cause if settled else "the run stopped before it settled; resume it to its end")
        )
    return budget_account(config, budget, value)


def accounts(loaded: Checkpoint, table: UnitTable, bank: int) -> dict[str, Any]:
    """What the file physically holds: weights, MACs and widths, before and after.

    Args:
        table: the sliced network's unit table.
        bank: numbers in the bank.
    """
    full = loaded.net.units.table
    every, left = np.ones(full.count, dtype=bool), np.ones(table.count, dtype=bool)
    after = {layer.weight: layer.shape[0] for layer in table.layers}
    return {
        "params": {
            "backbone": full.params(every),
            "exported": table.params(left),
            "heads": sum(p.numel() for p in loaded.net.heads.parameters()),
            "bank": bank,
        },
        "macs": {"backbone": full.macs(every), "exported": table.macs(left)},
        "widths": {
            layer.weight.removesuffix(".weight"): [layer.shape[0], after[layer.weight]]
            for layer in full.layers
        },
    }


def rounding(loaded: Checkpoint, slim: SlimNet) -> dict[str, Any]:
    """The multiple of the widths, and per layer the channels that only rounding keeps."""
    unused = np.append(~slim.used.any(axis=0), False)
    added = {}
    for layer in slim.table.layers:
        units = slim.table.slots.get((layer.weight, 0))
        if units is not None and unused[units].any():
            added[layer.weight.removesuffix(".weight")] = int(unused[units].sum())
    return {"multiple": loaded.config.budget.round_to, "added": added}


def image_input(loaded: Checkpoint) -> dict[str, Any]:
    """Size and preprocessing of the fp32 graph's `image`."""
    shape = loaded.config.input
    return {
        "height": shape.height,
        "width": shape.width,
        "channels": 3,
        "dtype": "float32",
        "normalisation": {"mean": list(shape.mean), "std": list(shape.std)},
        "resize": {
            "shorter_side": shape.shorter_side,
            "interpolation": "bilinear",
            "crop": "center",
        },
    }


def provenance(loaded: Checkpoint) -> dict[str, Any]:
    """Who made this, with what, from which run."""
    return {
        "prunion": versions().get("prunion", ""),
        "versions": versions(),
        "trained_with": dict(loaded.meta["versions"]),
        "seed": loaded.config.seed,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "config": loaded.config.to_json(),
    }


NORM_OPERATIONS = 4  # thop's (x - mean) / sqrt(var + eps) · weight + bias


def paper_accounts(net: DomainNet, alive: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """The manifest's `paper`.

    Args:
        alive: units that the exported network keeps, `[U]` bool.
        names: the domains' names, in the order of the network's.
    """
    every = np.ones(net.units.table.count, dtype=bool)
    full_bits, bits = paper_bits(net, every, 1, 0), paper_bits(net, alive, len(names), alive.sum())
    full, union = paper_macs(net, every), paper_macs(net, alive)
    own = (net.switches > 0).cpu().numpy()
    return {
        "bits": {"backbone": full_bits, "exported": bits},
        "params": bits / full_bits,
        "macs": {
            "backbone": full,
            "exported": union,
            "domains": {name: paper_macs(net, own[row]) for row, name in enumerate(names)},
        },
        "flop": union / full,
    }


def paper_bits(net: DomainNet, alive: np.ndarray, domains: int, switches: int) -> int:
    """Bits of a trunk of `alive` units, `domains` BatchNorms and `switches` bits per domain."""
    table, shared = net.units.table, 0
    for name, value in net.trunk.named_parameters():
        if not name.startswith("norms."):
            axes = (len(table.kept(name, a, n, alive)) for a, n in enumerate(value.shape))
            shared += math.prod(axes)
    norms = sum(
        2 * len(table.kept(f"{layer}.running_mean", 0, norm.weight.shape[1], alive))
        for layer, norm in net.norms.items()
    )
    return 32 * (shared + domains * norms) + domains * int(switches)


def paper_macs(net: DomainNet, alive: np.ndarray) -> int:
    """Operations of one image through `alive` `[U]` units, by thop's rules; no classifier."""
    return net.units.table.macs(alive) + norm_operations(net, alive)


def norm_operations(net: DomainNet, alive: np.ndarray) -> int:
    """thop's operations of every BatchNorm."""
    total = 0
    for node in net.trunk.graph.nodes:
        if node.op == "call_module" and str(node.target).startswith("norms."):
            layer = str(node.target).removeprefix("norms.").replace("/", ".")
            _, channels, *area = node.meta["val"].shape
            kept = len(net.units.table.kept(f"{layer}.running_mean", 0, int(channels), alive))
            total += NORM_OPERATIONS * kept * math.prod(int(n) for n in area)
    return total
