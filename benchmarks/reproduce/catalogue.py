"""The rows of `prunion reproduce`: every method on the networks of the papers that measured it.

Settings are those of the papers where they print them (docs/reproduce.md has where not). A row's
name is the method's and its setting's: `bap-slice-050` is budget-aware pruning of slices at β 0.5,
`taps-025` TAPS at λ 0.25.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from prunion.trainer.config import BackboneConfig, Method

__all__ = [
    "BUDGETS",
    "NETWORKS",
    "ReproducedRow",
    "backbone_of",
    "drops",
    "phases",
    "rows_of",
    "usual_rows",
]

BUDGETS = (1.0, 0.75, 0.5, 0.25)
# The networks of each benchmark, its papers' own first; VGG-16's of the tables ends in fc7.
NETWORKS: Mapping[str, tuple[str, ...]] = {
    "decathlon": ("wrn28_4", "resnet26", "wrn28_4_preact", "mobilenet_v2"),
    "imagenet-to-sketch": (
        *("resnet50", "densenet121", "vgg16", "vgg16_bn", "vgg16_conv", "vgg16_bn_conv"),
        "mobilenet_v2",
    ),
}
CONV = "_conv"  # of a network without the linear layers before its classifier
# How a method's epochs are divided: the share of warm-up, and of settling.
Phases = Literal["one", "prunion", "late", "taps"]
SHARES: Mapping[Phases, tuple[float, float]] = {
    "one": (0, 0),
    "prunion": (1 / 6, 1 / 2),
    "late": (0, 1 / 3),
    "taps": (1 / 15, 1 / 5),  # the paper settles nothing: its layers go on and off to the end
}


@dataclass(frozen=True)
class ReproducedRow:
    """One line of the table.

    Attributes:
        what: the method, in words.
        epochs: the paper's.
        train: keys of `[train]` but for epochs.
        limit: share of the parameters that the budget allows.
        drops: of these epochs, those after which all rates fall to a tenth; without any a cosine.
    """

    name: str
    network: str
    method: Method
    what: str
    epochs: int
    train: Mapping[str, Any] = field(default_factory=dict)
    limit: float = 1.0
    phases: Phases = "one"
    drops: tuple[int, ...] = ()


# As the papers' loops: each set is passed over in batches of its own, heads move by SGD.
COMMON: Mapping[str, Any] = {
    "order": "round-robin",
    "weight_decay": 0.0,
    "head_start": "random",
    "head_optimiser": "sgd",
    "head_lr": 1e-3,
    "lr": 1e-3,
    "batch_size": 32,
}
MASKS: Mapping[str, Any] = {**COMMON, "switch_lr": 1e-4, "lr": 1e-4}
ADAPTERS: Mapping[str, Any] = {
    **COMMON,
    "weight_decay": 5e-4,
    "head_lr": 0.1,
    "lr": 1e-2,
    "batch_size": 128,
}
PACKED: Mapping[str, Any] = {**COMMON, "order": "task-passes"}
PLACES: Mapping[str, Mapping[str, Any]] = {
    "": {},
    "-early": {"adapters": "early"},
    "-mid": {"adapters": "mid"},
    "-late": {"adapters": "late"},
    "-second": {"sites": "second"},
}
# A series adapter's shift goes into the BatchNorm behind its convolution.
SERIES = ("resnet26", "wrn28_4", "resnet50", "vgg16_bn", "vgg16_bn_conv")
DEPTHWISE = ("mobilenet_v2",)  # no convolution that an adapter could stand beside
ADAPTED = ("series", "parallel", "svd")


def rows_of(
    benchmark: str, network: str, budgets: Sequence[float] = BUDGETS
) -> dict[str, ReproducedRow]:
    """The rows of one network by name, in the order of the table.

    Args:
        budgets: β of the rows that prune.
    """
    rows = [
        *_plain(benchmark, network),
        *(_adapters(benchmark, network) if network not in DEPTHWISE else ()),
        *_pruned(benchmark, network, budgets),
    ]
    return {row.name: row for row in rows}


def usual_rows(benchmark: str, budgets: Sequence[float] = BUDGETS) -> list[ReproducedRow]:
    """Every method on the network that its paper measured it on."""
    main, second = NETWORKS[benchmark][:2]
    rows = list(rows_of(benchmark, main, budgets).values())
    if benchmark != "decathlon":
        return rows
    theirs = rows_of(benchmark, second, budgets).values()
    adapted = [row for row in theirs if row.method in (*ADAPTED, "finetune")]
    return [*(row for row in rows if row.method not in ADAPTED), *adapted]


def backbone_of(network: str, weights: str) -> BackboneConfig:
    """The network of a row with its weights: "default", "none" or a file."""
    from prunion.trainer.backbone import PAPER_NETS  # with torch: rows and lines need none

    if network in PAPER_NETS:
        return BackboneConfig(network, "prunion", weights)
    name = network.removesuffix(CONV)
    return BackboneConfig(name, weights=weights, cut=None if name == network else "features")


def phases(row: ReproducedRow, epochs: int) -> dict[str, int]:
    """`warmup`, `ramp` and `settle` of a row that trains so many epochs, one or more in ramp."""
    before, after = SHARES[row.phases]
    settle = min(epochs - 1, math.ceil(after * epochs))
    warmup = min(epochs - 1 - settle, round(before * epochs))
    return {"warmup": warmup, "ramp": epochs - warmup - settle, "settle": settle}


def drops(row: ReproducedRow, epochs: int) -> dict[str, tuple[int, ...]]:
    """`drops` of a row that trains so many epochs, as far along as the paper's; none at its end."""
    scaled = dict.fromkeys(round(drop * epochs / row.epochs) for drop in row.drops)
    found = tuple(drop for drop in scaled if 0 < drop < epochs)
    return {"drops": found} if found else {}


def _plain(benchmark: str, network: str) -> Iterator[ReproducedRow]:
    """What stores no adapter beside a convolution, and prunes nothing."""
    epochs, falls = (60, (45,)) if benchmark == "decathlon" else (30, (15,))
    tuned = {**COMMON, "trunk_lr": 1e-4, "trunk_optimiser": "adamw"}
    own = {**MASKS, "norms": "own"}
    both = [("simple", "affine masks, simple"), ("full", "affine masks, full")]
    rows: list[tuple[str, Method, str, Mapping[str, Any]]] = [
        ("feature", "feature", "frozen backbone", COMMON),
        ("norms", "norms", "own BatchNorm", COMMON),
        ("finetune", "finetune", "a network each", tuned),
        ("piggyback", "piggyback", "Piggyback", MASKS),
        ("piggyback-bn", "piggyback", "Piggyback, own BatchNorm", own),
        *((f"affine-{form}", "affine", what, {**MASKS, "affine": form}) for form, what in both),
    ]
    for name, method, what, keys in rows:
        yield ReproducedRow(name, network, method, what, epochs, keys, drops=falls)
    for name, order in (("packnet", "given"), ("packnet-reversed", "reversed")):
        keys = {**PACKED, "packnet_order": order}
        what = f"PackNet, order {order}"
        # 20 epochs, the last ten at a tenth of the rate, then ten at that once some are given back.
        yield ReproducedRow(name, network, "packnet", what, 30, keys, phases="late", drops=(10,))
    for charge in (0.25, 0.5, 0.75, 1.0):
        keys, name = {**COMMON, "taps_lambda": charge}, f"taps-{_percent(charge)}"
        yield ReproducedRow(name, network, "taps", f"TAPS λ={charge:g}", 30, keys, phases="taps")
    yield ReproducedRow("lora", network, "lora", "low-rank sums, rank 4", epochs, COMMON)


def _adapters(benchmark: str, network: str) -> Iterator[ReproducedRow]:
    epochs, falls = (120, (80, 100)) if benchmark == "decathlon" else (30, (20, 25))
    if network in SERIES:
        train = {**ADAPTERS, "adapter_lr": 0.1}
        yield ReproducedRow(
            "series", network, "series", "series adapters", epochs, train, drops=falls
        )
    for place, keys in PLACES.items() if network == "resnet26" else [("", {})]:
        what = f"parallel adapters{place.replace('-', ', ')}"
        train = {**ADAPTERS, **keys}
        yield ReproducedRow(
            f"parallel{place}", network, "parallel", what, epochs, train, drops=falls
        )
    what = "parallel adapters, joint SVD"
    yield ReproducedRow("svd", network, "svd", what, epochs, ADAPTERS, phases="late")


def _pruned(benchmark: str, network: str, budgets: Sequence[float]) -> Iterator[ReproducedRow]:
    """BA² and budget-aware pruning: slices as published, then channels, which are cut."""
    keys = {**MASKS, "granularity": "slice", "recipe": "paper"}
    decathlon = benchmark == "decathlon"
    epochs, batch, falls = (60, 32, (45,)) if decathlon else (45, 12, (15, 30))
    if not decathlon:
        keys |= {"switch_lr": 5e-5, "lr": 5e-5, "head_lr": 5e-4}
    keys["batch_size"] = batch
    methods: tuple[tuple[Method, str], ...] = (("ba2", "BA²"), ("bap", "budget-aware pruning"))
    for method, what in methods:
        for limit in budgets:
            name, told = f"{method}-slice-{_percent(limit)}", f"{what}, slices, β={limit:g}"
            yield ReproducedRow(name, network, method, told, epochs, keys, limit, drops=falls)
    for method, what in methods:
        for limit in (x for x in budgets if x < 1):
            name, told = f"{method}-{_percent(limit)}", f"{what}, channels, β={limit:g}"
            train = {"batch_size": batch, "trunk_optimiser": "adamw"}
            yield ReproducedRow(name, network, method, told, epochs, train, limit, phases="prunion")


def _percent(share: float) -> str:
    """As names have it: 0.5 is `050`, 0.125 is `0125`."""
    percent = round(100 * share)
    return f"{percent:03}" if math.isclose(percent, 100 * share) else f"{share:g}".replace(".", "")
