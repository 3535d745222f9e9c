"""Channel units of a backbone, and the places where their switches act."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch

import numpy as np
import torch
from torch import fx

from prunion.runtime.bundle import Layer, UnitTable
from prunion.runtime.errors import ConfigError
from prunion.trainer.backbone import op_name
from prunion.trainer.channels.slots import FIXED, ActivationSlots, Flow, Read
from prunion.trainer.channels.walk import KEEPS_ZERO, LAYOUT, flow_slots

__all__ = ["GateSite", "Units", "find_units"]


@dataclass(frozen=True)
class GateSite:
    """Where a gate multiplies an activation by its channels' switches.

    Attributes:
        node: name of the graph node whose output is gated.
        readers: names of the nodes that read the gated value; empty means all of them.
        units: unit of each channel, -1 where the channel has no switch.
        folded: the per-domain BatchNorms before it take the switch in at export; otherwise the
            gate stays in the exported graph as a multiplication.
    """

    node: str
    readers: tuple[str, ...]
    units: np.ndarray
    folded: bool


@dataclass(frozen=True)
class Units:
    """The channel units of one backbone.

    Attributes:
        table: which slots each unit has; what the checkpoint and the bundle store.
        gates: where switches act.
        channels: units of the channels of activations, by node name, wherever a reshape, split,
            padding or product reads or makes them.
        feature_units: unit of each feature that the heads read, `[F]`.
    """

    table: UnitTable
    gates: tuple[GateSite, ...]
    channels: dict[str, np.ndarray]
    feature_units: np.ndarray


def find_units(module: fx.GraphModule, keep: Sequence[str] = ()) -> Units:
    """Find the channel units of a traced backbone.

    Args:
        module: result of `trace`, ending in a feature vector `[N, F]`.
        keep: layers whose output channels are never removed, by name or pattern (`layer1.*`).

    Raises:
        ConfigError: one of `keep` is no layer.
        UnsupportedGraphError: an operation whose channels cannot be decided, naming its node.
    """
    flow = flow_slots(module)
    layers = {
        tensor.removesuffix(".weight"): ids
        for (tensor, axis), ids in flow.weights.items()
        if axis == 0 and tensor.endswith(".weight")
    }
    for pattern in keep:
        found = [name for name in layers if fnmatch(name, pattern)]
        if not found:
            raise ConfigError(
                f"[backbone] keep: {pattern!r} is no layer: give names or patterns such as "
                f"{', '.join(list(layers)[:3])}"
            )
        for name in found:
            flow.sets.tie(layers[name], torch.full_like(layers[name], FIXED))
    number = _number_roots(flow)
    slots = {key: _units_of(flow, ids, number) for key, ids in flow.weights.items()}
    table = UnitTable(len(number), slots, _layers(flow))
    return Units(
        table=table,
        gates=tuple(_norm_gates(flow, number) + _read_gates(flow, number)),
        channels=_channels(flow, number),
        feature_units=slots["head_weight", 1],
    )


def _number_roots(flow: Flow) -> dict[int, int]:
    """Units in the order in which the walk first laid them along a weight."""
    number: dict[int, int] = {}
    for ids in flow.weights.values():
        for root in flow.sets.roots(ids).tolist():
            if root != FIXED and root not in number:
                number[root] = len(number)
    return number


def _units_of(flow: Flow, ids: torch.Tensor, number: dict[int, int]) -> np.ndarray:
    roots = flow.sets.roots(ids).tolist()
    return np.array([number.get(root, -1) for root in roots], dtype=np.int64)


def _channel_units(flow: Flow, node: fx.Node, number: dict[int, int]) -> np.ndarray:
    ids = flow.values[node].ids
    return _units_of(flow, ids[0].flatten(1)[:, 0] if ids.dim() > 2 else ids[0], number)


def _channels(flow: Flow, number: dict[int, int]) -> dict[str, np.ndarray]:
    """Units of channels around the operations that slicing has to rewrite."""
    around: dict[fx.Node, None] = {}
    for node in flow.values:
        if op_name(node) in LAYOUT | {"contiguous", "clone", "pad", "mul"}:
            around.update(dict.fromkeys([node, *node.all_input_nodes]))
    return {
        str(node.name): _channel_units(flow, node, number)
        for node in around
        if isinstance(flow.values.get(node), ActivationSlots)
    }


def _layers(flow: Flow) -> tuple[Layer, ...]:
    positions: dict[str, int] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for weight, shape, count in flow.layers:
        positions[weight] = positions.get(weight, 0) + count
        shapes[weight] = shape
    return tuple(Layer(weight, shapes[weight], positions[weight]) for weight in shapes)


def _norm_gates(flow: Flow, number: dict[int, int]) -> list[GateSite]:
    """One gate behind each BatchNorm's activation (or behind the addition it feeds)."""
    places = dict.fromkeys(_gate_place(flow, norm) for norm in flow.norms)
    sites = []
    for node in places:
        units = _channel_units(flow, node, number)
        if (units >= 0).any():
            sites.append(GateSite(node.name, (), units, folded=True))
    return sites


def _gate_place(flow: Flow, node: fx.Node) -> fx.Node:
    """Follow single readers through operations that keep an off channel at zero."""
    while len(node.users) == 1:
        reader = next(iter(node.users))
        if op_name(reader) not in KEEPS_ZERO | {"add"}:
            break
        if not _off_is_zero(flow, flow.values[reader].ids, flow.values[reader].zero):
            break
        node = reader
    return node


def _off_is_zero(flow: Flow, ids: torch.Tensor, zero: torch.Tensor) -> bool:
    suspects = torch.unique(ids[~zero])
    return all(flow.sets.find(slot) == FIXED for slot in suspects.tolist())


def _read_gates(flow: Flow, number: dict[int, int]) -> list[GateSite]:
    """Explicit gates where something reads a channel that BatchNorm does not bring to zero."""
    bare: dict[fx.Node, list[Read]] = {}
    for read in flow.reads:
        if not _off_is_zero(flow, read.ids, read.zero):
            bare.setdefault(read.source, []).append(read)
    return [
        GateSite(
            source.name,
            tuple(read.node.name for read in reads),
            _channel_units(flow, source, number),
            folded=False,
        )
        for source, reads in bare.items()
    ]
