"""Chains of reshapes, splits and shuffles, told so that they hold for fewer channels too.

A traced graph has channel counts written into its views and splits. After slicing they are wrong,
and a shuffle's groups may be left with different numbers of channels. Between two ordinary
activations a chain of such operations is one of two things:

- a *selection*: "these channels of that tensor", whichever of them are left;
- *resized*: at every step the channels lie along one axis in a regular order, so that the chain
  itself works for fewer of them, with other numbers written into it.

What is neither needs all channels of the tensor that it starts from.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import fx

from prunion.runtime.errors import UnsupportedGraphError
from prunion.trainer.backbone import op_name
from prunion.trainer.channels.walk import LAYOUT

__all__ = ["NEVER_CUT", "Chains", "Located", "Resized", "Selection", "find_chains", "is_layout"]

# What takes a part by numbers: along the channels it would have to be renumbered.
BY_NUMBER = frozenset(
    "slice select split split_with_sizes chunk unbind index_select roll narrow".split()
)
Located = tuple[np.ndarray, int]  # units of the channels, and the axis along which they lie
NEVER_CUT: Located = (np.array([-1]), 1)


@dataclass(frozen=True)
class Selection:
    """A layout node's output as channels of `source`.

    Attributes:
        source: the ordinary activation the chain starts from, `[N, C, ...]`.
        channels: which of its channels, in order.
        form: `same` keeps the rank; `flat` flattens `[N, C, H, W]` into `[N, C·H·W]`; `spread`
            turns `[N, C]` into `[N, C, 1, 1]`.
    """

    source: fx.Node
    channels: np.ndarray
    form: str


@dataclass(frozen=True)
class Resized:
    """A layout node that does its work on fewer channels.

    Attributes:
        source: the ordinary activation the chain starts from.
        shape: the node's output for one image.
        axis: where the channels lie in it; `share`: entries there for each channel of `source`.
    """

    source: fx.Node
    shape: tuple[int, ...]
    axis: int
    share: float


@dataclass
class Chains:
    """What every layout node is that an ordinary operation reads.

    Attributes:
        whole: the nodes whose chain needs all channels of the tensor it starts from: that one.
    """

    selections: dict[fx.Node, Selection] = field(default_factory=dict)
    resized: dict[fx.Node, Resized] = field(default_factory=dict)
    whole: dict[fx.Node, fx.Node] = field(default_factory=dict)


def find_chains(module: fx.GraphModule, located: Callable[[fx.Node], Located | None]) -> Chains:
    """Follow the chains of a graph.

    Args:
        located: where an activation's channels lie; None where they lie along no one axis. One
            whose units are all -1 is never cut, and its chains stay as they are.
    """
    origin: dict[fx.Node, tuple[fx.Node, Any]] = {}
    chains, places = Chains(), dict[fx.Node, Located | None]()
    for node in module.graph.nodes:
        if not is_layout(node):
            continue
        source = node.args[0]
        assert isinstance(source, fx.Node)
        root = origin[source][0] if source in origin else source
        if root not in places:
            places[root] = located(root)
        place = places[root]
        if place is not None and (place[0] < 0).all():
            origin[node] = (root, None)
            continue
        ends = any(not is_layout(user) for user in node.users)
        try:
            value = origin[source][1] if source in origin else _positions(source)
            origin[node] = (root, _apply(module, node, value))
        except Exception:  # a size that is computed from the batch
            origin[node] = (root, None)
        if ends and not (place and _restated(chains, origin, node, root, place)):
            chains.whole[node] = root
    return chains


def is_layout(node: fx.Node) -> bool:
    """Whether a node only moves channels; a slice of positions has no channel count in it.

    One of an operation's several outputs moves nothing: it is what that operation made.
    """
    if op_name(node) == "getitem":
        source = node.args[0]
        return isinstance(source, fx.Node) and is_layout(source)
    if op_name(node) == "slice":
        return len(node.args) > 1 and bool(node.args[1] == 1)
    return op_name(node) in LAYOUT | {"contiguous", "clone", "alias"}


def _restated(
    chains: Chains,
    origin: dict[fx.Node, tuple[fx.Node, Any]],
    node: fx.Node,
    root: fx.Node,
    place: Located,
) -> bool:
    value = origin[node][1]
    if isinstance(value, tuple | list):  # its parts are read one by one
        return all(is_layout(user) for user in node.users)
    if value is None:
        return False
    selection = _selection(root, value) if place[1] == 1 else None
    if selection is not None:
        chains.selections[node] = selection
        return True
    steps = [node]
    while steps[-1].args[0] is not root:
        steps.append(steps[-1].args[0])  # type: ignore[arg-type]
    for outer, inner in _orders(place[0]):
        found = _resized(steps, origin, root, place, outer * inner, inner)
        if found is not None:
            chains.resized.update(found)
            return True
    return False


def _orders(units: np.ndarray) -> Iterator[tuple[int, int]]:
    """(outer, inner): channel `(o, g, i)` has a unit that depends on `g` alone."""
    count = len(units)
    for inner in (n for n in range(1, count) if count % n == 0):
        for outer in (n for n in range(1, count // inner) if count % (n * inner) == 0):
            by_place = units.reshape(outer, -1, inner)
            if (by_place == by_place[:1, :, :1]).all():
                yield outer, inner


def _resized(
    steps: list[fx.Node],
    origin: dict[fx.Node, tuple[fx.Node, Any]],
    root: fx.Node,
    place: Located,
    block: int,
    inner: int,
) -> dict[fx.Node, Resized] | None:
    """The steps from the last to the first, if `g` lies regularly along one axis of each."""
    channels, at = len(place[0]), place[1]
    groups = channels // block
    sides = [int(n) for n in root.meta["val"].shape[at + 1 :]]
    area = int(np.prod(sides))
    found = {}
    for step in steps:
        value = origin[step][1]
        before = at if step.args[0] is root else None
        if isinstance(value, tuple | list):
            if op_name(step) in BY_NUMBER and before is None:
                before = _regular(origin[step.args[0]][1], area, channels, inner, groups)  # type: ignore[index]
            if op_name(step) not in BY_NUMBER or _dim(step) == before:
                return None
            continue
        axis = _regular(value, area, channels, inner, groups)
        if axis is None:
            return None
        if op_name(step) in BY_NUMBER:
            source = origin.get(step.args[0], (None, None))[1]  # type: ignore[arg-type]
            if before is None:
                before = _regular(source, area, channels, inner, groups)
            if before is None or _dim(step) % value.dim() == before:
                return None
        found[step] = Resized(root, tuple(value.shape), axis, value.shape[axis] / channels)
    return found


def _regular(value: Any, area: int, channels: int, inner: int, groups: int) -> int | None:
    """The one axis along which `g` varies, as `(…, g, …)` of fixed sizes does; None without."""
    if not isinstance(value, torch.Tensor):
        return None
    which = (value // area % channels) // inner % groups
    axes = [d for d in range(value.dim()) if not (which == which.narrow(d, 0, 1)).all()]
    if len(axes) != 1:
        return None
    (axis,) = axes
    line = which.movedim(axis, 0).reshape(len(which.movedim(axis, 0)), -1)[:, 0]
    run = int((line != line[0]).nonzero()[0])
    if line.numel() % (run * groups):
        return None
    expected = torch.arange(line.numel()) // run % groups
    return axis if bool((line == expected).all()) else None


def _dim(node: fx.Node) -> int:
    position = 2 if op_name(node) in ("split", "split_with_sizes", "chunk", "roll") else 1
    dim = node.args[position] if len(node.args) > position else node.kwargs.get("dim", 0)
    dim = dim[0] if isinstance(dim, list | tuple) and dim else dim
    rank = node.args[0].meta["val"].dim()  # type: ignore[union-attr]
    return int(dim) % rank if isinstance(dim, int) else 0


def _positions(node: fx.Node) -> torch.Tensor:
    """The number of every element of a node's output for one image."""
    shape = [int(n) for n in node.meta["val"].shape[1:]]
    return torch.arange(int(np.prod(shape))).view(1, *shape)


def _apply(module: fx.GraphModule, node: fx.Node, value: Any) -> Any:
    """Run a layout operation on element numbers; symbolic batch sizes stand for one image."""
    target: Any = node.target

    def size(x: fx.Node) -> Any:
        """A size is known but for the batch, which is one; of a tensor the shape matters."""
        if x.op == "get_attr":
            return operator.attrgetter(str(x.target))(module)
        if op_name(x) == "sym_size" and x.args[1] == 0:
            return 1
        held = x.meta["val"]
        if isinstance(held, torch.Tensor):
            return torch.empty(1, *(int(n) for n in held.shape[1:]))
        if not str(held).isdigit():  # a product with the symbolic batch
            raise UnsupportedGraphError(f"node {x.name}: a size computed from the batch")
        return int(held)

    rest = fx.node.map_arg(node.args[1:], size)
    return target(value, *rest, **fx.node.map_arg(dict(node.kwargs), size))


def _selection(root: fx.Node, value: torch.Tensor) -> Selection | None:
    shape = [int(n) for n in root.meta["val"].shape[1:]]
    area = int(np.prod(shape[1:]))
    # Element n of `[C, H, W]` lies in channel n // area at position n % area. The chain is a
    # selection if each of its channels holds one channel of the source, all positions in order.
    if value.dim() == len(shape) + 1:
        channels, within = value.reshape(value.shape[1], -1) // area, value % area
        in_place = within.reshape(value.shape[1], -1) == torch.arange(within[0, 0].numel())
        if value.shape[2:] == tuple(shape[1:]) and in_place.all() and _constant(channels):
            return Selection(root, channels[:, 0].numpy(), "same")
    elif value.dim() == 2 and value.numel() % area == 0:
        channels = value.reshape(-1, area) // area
        ordered = value.reshape(-1, area) % area == torch.arange(area)
        if ordered.all() and _constant(channels):
            return Selection(root, channels[:, 0].numpy(), "flat")
    elif len(shape) == 1 and value.dim() == 4 and value.shape[2:] == (1, 1):
        return Selection(root, value.flatten().numpy(), "spread")
    return None


def _constant(channels: torch.Tensor) -> bool:
    return bool((channels == channels[:, :1]).all())
