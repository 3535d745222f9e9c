"""Which convolutions get an adapter: where in the network, and which of a block.

Rebuffi, Bilen and Vedaldi 2018, "Efficient parametrization of multi-domain deep neural networks",
arXiv:1803.10082, section 3.2: early, mid and late are the first to third of a network's stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import fx

from prunion.runtime.bundle import Layer
from prunion.runtime.errors import ConfigError
from prunion.trainer.backbone import op_name
from prunion.trainer.config import TrainConfig

__all__ = ["adapter_sites", "pair", "second_of_blocks", "sees_every_position", "tabled_sites"]

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
    if not sites:  # whatever is chosen of them
        fix = "leave out adapter_rank" if train.adapter_rank else "set another [train] method"
        raise ConfigError(
            "the network has no convolution to adapt, of odd kernel sizes above 1×1, without "
            f"groups, and not frozen: {fix}"
        )
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
            'convolution of this network to adapt: choose others; "all" and "both" leave some'
        )
    return tuple(names)


def tabled_sites(
    train: TrainConfig, trunk: fx.GraphModule, layers: Sequence[Layer]
) -> tuple[str, ...]:
    """Those of `adapter_sites` that one graph of all domains can have an adapter beside.

    Raises ConfigError if there is none.
    """
    shapes, kept = {layer.weight: layer.shape for layer in layers}, set[str]()
    for node in trunk.graph.nodes:
        if op_name(node) == "conv2d" and isinstance(node.args[1], fx.Node):
            name, alone = str(node.args[1].target), len(node.args[1].users) == 1
            if alone and name in shapes and sees_every_position(node, shapes[name][2:]):
                kept.add(name)
    found = tuple(name for name in adapter_sites(train, trunk, layers) if name in kept)
    if not found:
        raise ConfigError(
            f"[train] adapter_rank is {train.adapter_rank}, and no convolution of this network "
            "that it would adapt is padded by half of its kernel: leave it out"
        )
    return found


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


def sees_every_position(node: fx.Node, kernel: Sequence[int]) -> bool:
    """Whether the centre of a convolution's kernel meets every position that its stride leaves.

    It does with as much padding as half of the kernel, and only then does a 1×1 convolution of the
    same stride give maps of the same size.
    """
    given: list[Any] = list(node.args[3:6])
    _, padding, dilation = given + [1, 0, 1][len(given) :]
    if isinstance(padding, str):
        return padding == "same"
    sides = zip(pair(padding), pair(dilation), kernel, strict=True)
    return all(pad == step * (size // 2) for pad, step, size in sides)


def pair(value: object) -> tuple[int, int]:
    """A convolution's argument for height and width, which may be one number for both."""
    numbers = value if isinstance(value, list | tuple) else (value,)
    first, last = numbers[0], numbers[-1]
    assert isinstance(first, int) and isinstance(last, int)
    return first, last


def _has_place(layer: Layer) -> bool:
    kernel = layer.shape[2:]
    return len(kernel) == 2 and max(kernel) > 1 and all(size % 2 for size in kernel)


def _groups(trunk: fx.GraphModule, weight: str) -> int:
    for node in trunk.graph.nodes:
        if op_name(node) == "conv2d" and str(getattr(node.args[1], "target", "")) == weight:
            return int(node.args[6] if len(node.args) > 6 else node.kwargs.get("groups", 1))
    return 0  # a convolution of another kind
