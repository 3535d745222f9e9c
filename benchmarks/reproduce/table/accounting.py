"""FLOP and Params of a finished run as the papers' tables count them.

`dos Santos et al. 2023, arXiv:2309.11464`, Tables 2 and 3, and `Mancini et al. 2020,
arXiv:2103.13894`, Tables 1 to 4. Params: 32 bits for a number and one for a switch or a mask's
place, no classifiers, over the backbone with one BatchNorm; the source domain is the backbone and
stores nothing more. Some of the printed columns count the other domains' BatchNorms, some do not.
FLOP: a domain's own multiply-accumulates, the mean over domains; what no dense runtime saves counts
as saved where switches are single slices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prunion.exporter.slim import kept_units
from prunion.trainer.cost import own_bits, paper_account, paper_bits, paper_macs
from prunion.trainer.network import Checkpoint

__all__ = ["Figures", "figures_of"]


@dataclass(frozen=True)
class Figures:
    """Multiples of the backbone's.

    Attributes:
        flop: of a domain's own channels or slices, the mean over domains.
        flop_union: of what all domains together use, slices too: a manifest's `paper.flop_union`.
        flop_graph: of the graph that the file holds, as a dense runtime computes it.
        params: of all domains, their BatchNorms too; `params_without_norms` apart from these.
    """

    flop: float
    flop_union: float
    flop_graph: float
    params: float
    params_without_norms: float


def figures_of(loaded: Checkpoint) -> Figures:
    """The columns of a run whose domains are all but the source.

    Args:
        loaded: not merged, or an only domain's own weights are nobody's any more.
    """
    net, train = loaded.net, loaded.config.train
    table, domains = net.units.table, len(net.classes)
    every = np.ones(table.count, dtype=bool)
    alive = kept_units(loaded, net.switches)
    full, one, two = (
        paper_bits(net, units, count, 0) for units, count in ((every, 1), (alive, 1), (alive, 2))
    )
    bits = one + domains * (int(alive.sum()) if train.traits.prunes else 0)
    if net.adapter is not None:
        bits += own_bits(net, net.adapter, alive, domains)
    if train.method == "finetune":  # its file has a domain's trunk in the place of the source's
        bits += full - (two - one)
    norms = 0 if train.freezes_norms else domains * (two - one)
    graph = paper_macs(net, alive) / paper_macs(net, every)
    paper = paper_account(net, alive, [str(domain) for domain in range(domains)], train)
    return Figures(paper.flop, paper.flop_union, graph, (bits + norms) / full, bits / full)
