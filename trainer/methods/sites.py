"""Which convolutions get an adapter: where in the network, and which of a block.

Rebuffi, Bilen and Vedaldi 2018, "Efficient parametrization of multi-domain deep neural networks",
arXiv:1803.10082, section 3.2: early, mid and late are the first to third of a network's stages.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import fx

from prunion.runtime.bundle import Layer
from prunion.runtime.errors import ConfigError
from prunion.trainer.backbone import op_name
from prunion.trainer.config import TrainConfig

__all__ = ["adapter_sites", "second_of_blocks"]

STAGES = ("early", "mid", "late")


def adapter_sites(
    train: TrainConfig, trunk: fx.GraphModule, layers: Sequence[Layer]
) -> tuple[str, ...]:
    """Weights of the convolutions that get an adapter, in the network's order.

    Only those whose kernel has a centre and more around it, and no groups: beside a 1×1
    convolution an adapter would be another of its size. Stages are the sizes that maps have.

    Raises ConfigError if there is none.
    """
    sites = [x for x in layers if _has_place(x) and _groups(trunk, x.weight) == 1]
    if train.adapters != "all":
        sizes = sorted({site.positions for site in sites}, reverse=True)
        thirds = np.array_split(sizes, len(STAGES))
        chosen = set(thirds[STAGES.index(train.adapters)].tolist())
        sites = [site for site in sites if site.positions in chosen]
    names = [site.weight for site in sites]
    if train.sites == "second":
        second = second_of_blocks(trunk)
        names = [name for name in names if name in second]
    if not names:
        raise ConfigError(
            f'[train] adapters = "{train.adapters}" and sites = "{train.sites}" leave no '
            "convolution of this network to adapt: choose others"
        )
    return tuple(names)


def second_of_blocks(trunk: fx.GraphModule) -> set[str]:
    """Weights of the convolutions whose result, after a BatchNorm or none, is added to another."""
    found = set()
    for node in trunk.graph.nodes:
        if node.op != "get_attr":
            continue
        readers = set().union(*(layer.users for layer in node.users), ())
        behind = {user for x in readers if x.op == "call_module" for user in x.users}
        behind |= {user for x in behind if x.op == "call_module" for user in x.users}
        if any(op_name(user).rstrip("_") == "add" for user in readers | behind):
            found.add(str(node.target))
    return found


def _has_place(layer: Layer) -> bool:
    kernel = layer.shape[2:]
    return len(kernel) == 2 and max(kernel) > 1 and all(size % 2 for size in kernel)


def _groups(trunk: fx.GraphModule, weight: str) -> int:
    for node in trunk.graph.nodes:
        if op_name(node) == "conv2d" and str(getattr(node.args[1], "target", "")) == weight:
            return int(node.args[6] if len(node.args) > 6 else node.kwargs.get("groups", 1))
    return 0  # a convolution of another kind
