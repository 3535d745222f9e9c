"""Channel slots, the sets that tie them together, and what a walk over a graph knows of them.

A *slot* is one channel at one place: an output of a convolution, a channel of a BatchNorm, an
input of the next layer. The walk gives every slot an id and ties those that must live or die
together into one set, which later is a unit. Each activation carries two small tensors of its own
shape with a batch of one: the slot id of each element, and whether that element is exactly zero
when its slot is switched off.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from prunion.runtime.errors import UnsupportedGraphError

__all__ = [
    "FIXED",
    "ONE_IMAGE",
    "ActivationSlots",
    "Flow",
    "Read",
    "SlotSets",
    "arg_of",
    "channel_ids",
    "fixed",
    "name_of",
    "once",
    "per_channel",
    "read",
    "shape_of",
    "size_of_one",
    "sizes_of",
    "spread",
    "tensor_of",
    "value_of",
    "varying",
    "weight_shape",
]

FIXED = 0  # the set of slots that are never removed: the image's channels, protected layers
# Where a graph whose batch has a fixed size keeps what its nodes are for a batch of one.
ONE_IMAGE = "one image"


@dataclass(frozen=True)
class ActivationSlots:
    """What one activation carries.

    Attributes:
        ids: slot id of every element, `[1, C, ...]` int64.
        zero: is the element exactly 0 when its slot is off, same shape, bool.
    """

    ids: torch.Tensor
    zero: torch.Tensor


class SlotSets:
    """Disjoint sets of slot ids. The smallest id of a set stands for it, so FIXED always does."""

    def __init__(self) -> None:
        self._parent = [FIXED]

    def fresh(self, count: int) -> torch.Tensor:
        """`count` new ids, each a set of its own: `[count]` int64."""
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return torch.arange(first, first + count)

    def find(self, slot: int) -> int:
        """The id that stands for the set of `slot`."""
        root = slot
        while self._parent[root] != root:
            root = self._parent[root]
        while self._parent[slot] != root:  # so that the next look takes one step
            self._parent[slot], slot = root, self._parent[slot]
        return root

    def tie(self, a: torch.Tensor, b: torch.Tensor) -> None:
        """Join the sets of `a` and `b` element by element (same shape)."""
        if a is b:
            return
        for dim in range(a.dim()):  # expanded axes hold the same slots at every position
            if a.stride(dim) == 0 and b.stride(dim) == 0:
                a, b = a.narrow(dim, 0, 1), b.narrow(dim, 0, 1)
        pairs = torch.stack([a.reshape(-1), b.reshape(-1)], dim=1)
        for x, y in torch.unique(pairs, dim=0).tolist():
            x, y = self.find(x), self.find(y)
            if x != y:
                self._parent[max(x, y)] = min(x, y)

    def fix(self, slots: torch.Tensor) -> bool:
        """Say that none of `slots` is ever removed; False where that was so already."""
        roots = {self.find(slot) for slot in torch.unique(once(slots)).tolist()} - {FIXED}
        for root in roots:
            self._parent[root] = FIXED
        return bool(roots)

    def table(self) -> torch.Tensor:
        """Every slot's representative, by slot: `[slots]`."""
        return torch.tensor([self.find(slot) for slot in range(len(self._parent))])

    def roots(self, slots: torch.Tensor) -> torch.Tensor:
        """Each slot's representative, same shape."""
        flat = [self.find(slot) for slot in slots.reshape(-1).tolist()]
        return torch.tensor(flat, dtype=torch.int64).reshape(slots.shape)


@dataclass(frozen=True)
class Read:
    """`node` mixes the channels of its input `source`: those that are off must be zero there."""

    node: fx.Node
    source: fx.Node
    ids: torch.Tensor
    zero: torch.Tensor


@dataclass(frozen=True)
class Flow:
    """Everything the walk over a graph found out.

    Attributes:
        module: what is walked over.
        values: the slots of every activation (a tuple of them for a split, an int for a size).
        weights: slot ids along an axis of a parameter or buffer.
        reads: where channels are mixed.
        layers: weight, shape and positions of each convolution, linear layer and product.
        norms: the BatchNorms.
        outputs: slot ids of a layer's outputs, where they do not lie along its weight's first axis.
        whole: why channels are kept whole, by the node that needs all of them.
        untouched: parameters that something reads which needs them whole.
    """

    module: fx.GraphModule
    sets: SlotSets = field(default_factory=SlotSets)
    values: dict[fx.Node, Any] = field(default_factory=dict)
    weights: dict[tuple[str, int], torch.Tensor] = field(default_factory=dict)
    reads: list[Read] = field(default_factory=list)
    layers: list[tuple[str, tuple[int, ...], int]] = field(default_factory=list)
    norms: list[fx.Node] = field(default_factory=list)
    outputs: dict[str, torch.Tensor] = field(default_factory=dict)
    whole: dict[fx.Node, str] = field(default_factory=dict)
    untouched: set[str] = field(default_factory=set)

    def lay(self, tensor: str, axis: int, ids: torch.Tensor) -> None:
        """Say that `axis` of `tensor` is laid out by `ids`; a second use ties both."""
        known = self.weights.setdefault((tensor, axis), ids)
        self.sets.tie(known, ids)


# --- slots of activations, for the operations' handlers -----------------------------------------


def value_of(flow: Flow, node: fx.Node) -> ActivationSlots:
    """The slots of an operation's first input."""
    value: ActivationSlots = flow.values[node.args[0]]  # type: ignore[index]
    return value


def read(flow: Flow, node: fx.Node, source: fx.Node) -> None:
    """Note that `node` mixes the channels of `source`."""
    value = flow.values[source]
    flow.reads.append(Read(node, source, value.ids, value.zero))


def channel_ids(flow: Flow, node: fx.Node, source: fx.Node) -> torch.Tensor:
    """Slot id of each channel `[C]`; what lies at its other positions is tied to it.

    Raises UnsupportedGraphError where the channels lie along another axis.
    """
    ids: torch.Tensor = once(flow.values[source].ids)
    channels: int = flow.values[source].ids.shape[1]
    if ids.dim() > 2:
        first = ids.flatten(2)[:, :, :1].reshape(1, -1, *([1] * (ids.dim() - 2)))
        if not (ids == first).all():
            if (ids == ids[:, :1]).all():
                raise UnsupportedGraphError(f"node {node.name}: its channels are not on axis 1")
            flow.sets.tie(ids, first.expand_as(ids))
        ids = first.flatten(1)
    return ids[0].expand(channels) if ids.shape[1] == 1 else ids[0]


def once(ids: torch.Tensor) -> torch.Tensor:
    """The same without the axes along which it was expanded: those have one entry."""
    for dim in range(ids.dim()):
        if ids.stride(dim) == 0:
            ids = ids.narrow(dim, 0, min(1, ids.shape[dim]))
    return ids


def varying(ids: torch.Tensor) -> list[int]:
    """The axes along which `ids` differ."""
    ids = once(ids)
    return [d for d in range(ids.dim()) if not (ids == ids.narrow(d, 0, 1)).all()]


def per_channel(zero: torch.Tensor) -> torch.Tensor:
    """Is the whole channel zero when off: `[1, C, ...]` → `[C]`."""
    return zero[0].reshape(zero.shape[1], -1).all(dim=1)


def spread(ids: torch.Tensor, zero: torch.Tensor, shape: tuple[int, ...]) -> ActivationSlots:
    """Slots of `shape` `[1, C, ...]` from one id and one zero flag per channel."""
    view = (1, -1, *([1] * (len(shape) - 2)))
    return ActivationSlots(ids.view(view).expand(shape), zero.view(view).expand(shape))


def fixed(shape: tuple[int, ...]) -> ActivationSlots:
    """Slots that are never removed."""
    ids = torch.full((1,), FIXED).expand(shape)
    return ActivationSlots(ids, torch.zeros(1, dtype=torch.bool).expand(shape))


# --- a node's arguments -------------------------------------------------------------------------


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Shape of a node's output for one image, which its first axis is taken to be of."""
    return (1, *sizes_of(node)[1:])


def sizes_of(node: fx.Node) -> list[int]:
    """Shape of a node's output for one image, whichever axes the batch lies along."""
    value: torch.Tensor = node.meta.get(ONE_IMAGE, node.meta["val"])
    return [size_of_one(n) for n in value.shape]


def size_of_one(size: int | torch.SymInt) -> int:
    """A size for one image: what is not fixed is the batch, or computed of it.

    `int` of such a size would give the batch of the trace, and fix it in all others.
    """
    if isinstance(size, int):
        return size
    number = size.node.expr
    return int(number.subs(dict.fromkeys(number.free_symbols, 1)))


def tensor_of(flow: Flow, node: fx.Node) -> torch.Tensor:
    """The parameter or constant that a node reads."""
    value: torch.Tensor = operator.attrgetter(str(node.target))(flow.module)
    return value


def weight_shape(node: fx.Node) -> tuple[int, ...]:
    """Shape of the weight of a convolution, a linear layer or PReLU, its second argument."""
    arg = node.args[1]
    assert isinstance(arg, fx.Node)
    return tuple(int(n) for n in arg.meta["val"].shape)


def name_of(node: fx.Node, position: int) -> str | None:
    """Name of the parameter at an argument position, None where there is none."""
    arg = arg_of(node, position, None)
    if not isinstance(arg, fx.Node):
        return None
    if arg.op != "get_attr":
        raise UnsupportedGraphError(
            f"node {node.name}: its weight is computed ({arg.name}), not a parameter; prunion "
            "slices parameters only"
        )
    return str(arg.target)


def arg_of(node: fx.Node, position: int, default: Any) -> Any:
    """An argument by position, also where it was given by keyword."""
    if position < len(node.args):
        return node.args[position]
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    return node.kwargs.get(schema[position].name, default) if position < len(schema) else default
