"""The manifest's parts, worked out from a checkpoint: budget, counts, input, origin.

Two accounts stand beside each other. `counts` and `widths` tell what the file holds;
`paper_account` counts as the papers do: 32 bits for each number, one for each switch, no
classifiers; operations by thop's rules for convolutions, linear layers and BatchNorm. They are:

- Berriel, Lathuilière, Nabi, Klein, Oliveira-Santos, Sebe and Ricci, "Budget-Aware Adapters for
  Multi-Domain Learning", 2019, arXiv 1905.06242;
- dos Santos, Berriel, Oliveira-Santos, Sebe and Almeida, "Budget-Aware Pruning: Handling Multiple
  Domains with Less Parameters", 2023, arXiv 2309.11464.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timezone

import numpy as np

from prunion.exporter.slim import SlimNet, adapter_numbers
from prunion.runtime.bundle import (
    BudgetAccount,
    ImageInput,
    PaperAccount,
    Provenance,
    Rounding,
    UnitTable,
    counts_to_json,
    mean_share,
)
from prunion.runtime.errors import BudgetError
from prunion.trainer.backbone import PIXEL_NORM
from prunion.trainer.config import TrainConfig
from prunion.trainer.cost import budget_account, make_budget, make_pricer, shown_cost
from prunion.trainer.methods import WeightAdapter
from prunion.trainer.network import Checkpoint, DomainNet, versions

__all__ = [
    "budget_of",
    "counts",
    "image_input",
    "norm_operations",
    "paper_account",
    "paper_bits",
    "paper_macs",
    "provenance",
    "rounding",
    "widths",
]

NUMBER_BITS = 32
NORM_OPERATIONS = 4  # thop's (x - mean) / sqrt(var + eps) · weight + bias


def budget_of(
    loaded: Checkpoint, alive: np.ndarray, file_bytes: int | None = None
) -> BudgetAccount:
    """The budget asked for and what keeping `alive` `[U]` costs.

    Args:
        file_bytes: size of the fp32 graph once it is written, for a budget in bytes; without it
            the upper bound that training kept to.

    Raises:
        BudgetError: it costs more than the budget allows, in a run that promised it.
    """
    config = loaded.config.budget
    train = loaded.config.train
    budget = make_budget(config, make_pricer(config, loaded.net), cuts=train.traits.prunes)
    value = budget.pricer.of(alive)
    if config.kind == "bytes" and file_bytes is not None:
        value = file_bytes
    if not value <= budget.allowed and train.cut == "union" and train.traits.prunes:
        settled = loaded.meta.get("phase") == "settle"
        cause = "round_to, the budget or the form of the heads are not those of its training"
        raise BudgetError(
            f"the checkpoint's switches cost {shown_cost(config.kind, value)} with widths in "
            f"multiples of {budget.round_to}, its budget allows "
            f"{shown_cost(config.kind, budget.allowed)}: "
            + (cause if settled else "the run stopped before it settled; resume it to its end")
        )
    return budget_account(config, budget, value)


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
    return Provenance(
        prunion=versions().get("prunion", ""),
        versions=versions(),
        trained_with=dict(loaded.meta["versions"]),
        seed=loaded.config.seed,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        config=loaded.config.to_json(),
        model_sha256=str(loaded.meta["model_sha256"]),
    )


def paper_account(
    net: DomainNet,
    alive: np.ndarray,
    names: Sequence[str],
    train: TrainConfig,
    slices: WeightAdapter | None = None,
) -> PaperAccount:
    """The manifest's `paper`.

    Args:
        alive: units that the exported network keeps, `[U]` bool.
        names: the domains' names, in the order of the network's.
        train: whose method says what the domains store: switches, and a BatchNorm each or none.
        slices: the network's adapter as it was before an only domain's weights took the trunk's
            place: what it uses of them is counted, whatever holds the zeros.
    """
    adapter = net.adapter if slices is None else slices
    every = np.ones(net.units.table.count, dtype=bool)
    # The papers' backbone is one domain's network: its own BatchNorm and no switches.
    full_bits = paper_bits(net, every, 1, 0)
    switches = int(alive.sum()) if train.traits.prunes else 0
    bits = paper_bits(net, alive, 1 if train.freezes_norms else len(names), switches)
    if adapter is not None:
        mixed = NUMBER_BITS * len(names) * adapter_numbers(net, alive)
        unused = adapter.unused_bits(net.units.table.params(alive))
        bits += (mixed or adapter.extra_bits()) - unused
    full, union = paper_macs(net, every), _used_macs(net, adapter, alive, None)
    own = (net.switches > 0).cpu().numpy()
    domains = {name: _used_macs(net, adapter, own[row], row) for row, name in enumerate(names)}
    return PaperAccount(
        bits_backbone=full_bits,
        bits_exported=bits,
        params=bits / full_bits,
        macs_backbone=full,
        macs_exported=union,
        macs_domains=domains,
        flop=mean_share(domains.values(), full),
        flop_union=union / full,
        method=train.method,
    )


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
        if layer != PIXEL_NORM  # of preprocessing, which no paper counts
    )
    return NUMBER_BITS * (shared + domains * norms) + domains * int(switches)


def _used_macs(
    net: DomainNet, adapter: WeightAdapter | None, alive: np.ndarray, row: int | None
) -> int:
    """`paper_macs` of what a domain uses, or all together: of its slices, where these are learned.

    Fewer slices are fewer operations in theory alone, as in the papers.
    """
    positions = {layer.weight: layer.positions for layer in net.units.table.layers}
    used = None if adapter is None else adapter.used_macs(positions, row)
    return paper_macs(net, alive) if used is None else used + norm_operations(net, alive)


def paper_macs(net: DomainNet, alive: np.ndarray) -> int:
    """Operations of one image through `alive` `[U]` units, by thop's rules; no classifier."""
    return net.units.table.macs(alive) + norm_operations(net, alive)


def norm_operations(net: DomainNet, alive: np.ndarray) -> int:
    """thop's operations of every BatchNorm that keeps `alive` `[U]`, for one image."""
    total = 0
    for node in net.trunk.graph.nodes:
        if node.op == "call_module" and str(node.target).startswith("norms."):
            layer = str(node.target).removeprefix("norms.").replace("/", ".")
            if layer == PIXEL_NORM:
                continue
            _, channels, *area = node.meta["val"].shape
            kept = len(net.units.table.kept(f"{layer}.running_mean", 0, int(channels), alive))
            total += NORM_OPERATIONS * kept * math.prod(int(n) for n in area)
    return total
