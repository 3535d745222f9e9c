"""`python -m prunion.benchmarks.reproduce.ratios`: Params of every method, computed and printed.

32 bits for a number and one for a mask's place, no classifiers, over the backbone; the first of T
domains is the backbone's own, ImageNet, and stores nothing more. Counted from the networks
themselves, at their start: what training decides (TAPS, pruned unions) has no figure here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import click

from prunion.benchmarks.reproduce.catalogue import backbone_of
from prunion.runtime.cli import OneLineCommand
from prunion.trainer.config import TrainConfig
from prunion.trainer.methods import Sizes, adapter_ratio, make_adapter, params_ratio
from prunion.trainer.network import DomainNet, build_network

__all__ = ["RATIOS", "Ratio", "computed", "ratio_table", "sizes_of"]

SIZE = (64, 64)  # numbers do not depend on it
SUCCESSIVE = "a ratio of rounded megabytes, it seems: 1.10, 1.11 and 1.09 for one formula"
ONE_DIGIT = "printed with one digit, rounded down"
NOT_FOUND = "no formula found gives 1.03 here and 1.17 for DenseNet-121; without BatchNorm: 1.089"
PLACED = "its column is the whole network's, whatever is adapted"


@dataclass(frozen=True)
class Ratio:
    """One figure.

    Attributes:
        row: as `prunion reproduce` names it.
        domains: T.
        train: keys of `[train]`.
        norms: whether the other domains' BatchNorms are counted.
        alone: whether convolutions alone are, of the backbone too.
        printed: in a paper; None where none prints it.
        why: where the two differ by more than 0.01.
    """

    row: str
    network: str
    domains: int
    train: Mapping[str, Any] = field(default_factory=dict)
    norms: bool = False
    alone: bool = False
    printed: float | None = None
    why: str = ""


def _adapted(row: str, printed: float | None, why: str = "", **train: Any) -> Ratio:
    """Of the adapters' paper, which counts convolutions alone."""
    return Ratio(row, "resnet26", 10, train, alone=True, printed=printed, why=why)


PIGGYBACK: Mapping[str, Any] = {"method": "piggyback"}
OWN: Mapping[str, Any] = {"method": "piggyback", "norms": "own"}
SIMPLE: Mapping[str, Any] = {"method": "affine", "affine": "simple"}
FULL: Mapping[str, Any] = {"method": "affine"}
PACKNET: Mapping[str, Any] = {"method": "packnet"}
BA2: Mapping[str, Any] = {"method": "ba2", "granularity": "slice"}
BAP: Mapping[str, Any] = {"method": "bap", "granularity": "slice"}

RATIOS: tuple[Ratio, ...] = (
    Ratio("feature", "wrn28_4", 10, {"method": "feature"}, printed=1.00),
    Ratio("finetune", "wrn28_4", 10, {"method": "finetune"}, norms=True, printed=10.0),
    Ratio("piggyback", "wrn28_4", 10, PIGGYBACK, printed=1.28),
    Ratio("affine-simple", "wrn28_4", 10, SIMPLE, norms=True, printed=1.29),
    Ratio("affine-full", "wrn28_4", 10, FULL, norms=True, printed=1.29),
    Ratio("ba2-slice-100", "wrn28_4", 10, BA2, alone=True, printed=1.03),
    Ratio("bap-slice-100", "wrn28_4", 10, BAP, alone=True, printed=1.03),
    _adapted("parallel", 2.0, method="parallel"),
    _adapted("parallel-second", 1.5, ONE_DIGIT, method="parallel", sites="second"),
    _adapted("parallel-early", 2.0, PLACED, method="parallel", adapters="early"),
    _adapted("parallel-mid", 2.0, PLACED, method="parallel", adapters="mid"),
    _adapted("parallel-late", 2.0, PLACED, method="parallel", adapters="late"),
    _adapted("svd", 1.5, ONE_DIGIT, method="svd"),
    _adapted("series", 2.0, ONE_DIGIT, method="series"),
    _adapted("lora", None, method="lora"),
    Ratio("piggyback", "resnet50", 6, PIGGYBACK, printed=1.16),
    Ratio("piggyback-bn", "resnet50", 6, OWN, norms=True, printed=1.17),
    Ratio("affine-simple", "resnet50", 6, SIMPLE, norms=True, printed=1.17),
    Ratio("affine-full", "resnet50", 6, FULL, norms=True, printed=1.17),
    Ratio("packnet", "resnet50", 6, PACKNET, alone=True, printed=1.10),
    Ratio("ba2-slice-100", "resnet50", 6, BA2, norms=True, printed=1.03, why=NOT_FOUND),
    Ratio("piggyback", "densenet121", 6, PIGGYBACK, printed=1.15),
    Ratio("piggyback-bn", "densenet121", 6, OWN, norms=True, printed=1.21),
    Ratio("affine-simple", "densenet121", 6, SIMPLE, norms=True, printed=1.21),
    Ratio("affine-full", "densenet121", 6, FULL, norms=True, printed=1.21),
    Ratio("packnet", "densenet121", 6, PACKNET, alone=True, printed=1.11, why=SUCCESSIVE),
    Ratio("ba2-slice-100", "densenet121", 6, BA2, norms=True, printed=1.17),
    Ratio("piggyback", "vgg16", 6, PIGGYBACK, printed=1.16),
    Ratio("affine-simple", "vgg16", 6, SIMPLE, norms=True, printed=1.16),
    Ratio("affine-full", "vgg16", 6, FULL, norms=True, printed=1.16),
    Ratio("packnet", "vgg16", 6, PACKNET, alone=True, printed=1.09),
)


def computed(ratio: Ratio) -> float:
    """The figure, from the network itself."""
    net, train = _network(ratio.network), TrainConfig(**ratio.train)
    sizes = sizes_of(net, alone=ratio.alone)
    known = params_ratio(train.method, sizes, ratio.domains, own_norms=ratio.norms)
    if known is not None and train.method in ("feature", "norms", "finetune"):
        return known
    # One domain's parts, and of PackNet, whose owners are all domains', those of all but the first.
    domains = ratio.domains - 1 if train.method == "packnet" else 1
    trunk = _network.__wrapped__(ratio.network).trunk if train.method == "series" else net.trunk
    adapter = make_adapter(train, trunk, net.units.table.layers, domains)
    assert adapter is not None
    if train.method == "svd":  # compresses then
        adapter.advance(dict(trunk.named_parameters()), 0, "settle")
    return adapter_ratio(adapter, sizes, ratio.domains, own_norms=ratio.norms)


def sizes_of(net: DomainNet, *, alone: bool = False) -> Sizes:
    """What a network holds, without classifiers; `alone` leaves BatchNorm out."""
    layers = net.units.table.layers
    norms = 0 if alone else sum(2 * norm.weight.shape[1] for norm in net.norms.values())
    return Sizes(sum(math.prod(layer.shape) for layer in layers), norms, len(layers))


def ratio_table(ratios: Sequence[Ratio] = RATIOS) -> str:
    """The figures as Markdown, each beside the printed one, with the reason where they differ."""
    lines = ["| row | network, T | computed | printed | why |", "| --- | --- | --- | --- | --- |"]
    for ratio in ratios:
        value = computed(ratio)
        shown = "" if ratio.printed is None else f"{ratio.printed:.4g}"
        where = f"{ratio.network}, {ratio.domains}"
        lines.append(f"| `{ratio.row}` | {where} | {value:.3f} | {shown} | {ratio.why} |")
    return "\n".join(lines)


@lru_cache(maxsize=1)  # the rows of a network follow each other, and VGG-16 is large
def _network(name: str) -> DomainNet:
    return build_network(backbone_of(name, "none"), SIZE, [2])


@click.command(cls=OneLineCommand)
@click.option("--network", "networks", multiple=True, help="Of these alone; can be repeated.")
def main(networks: tuple[str, ...]) -> None:
    """Print Params of every method on its papers' networks, computed and printed."""
    click.echo(ratio_table([x for x in RATIOS if not networks or x.network in networks]))


if __name__ == "__main__":
    main()
