"""Channel units of a backbone, and the places where their switches act."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

import numpy as np
import torch
from torch import fx

from prunion.runtime.bundle import Layer, UnitTable
from prunion.runtime.errors import ConfigError, UnsupportedGraphError
from prunion.trainer.backbone import PIXEL_NORM, given_name, op_name
from prunion.trainer.channels.chains import NEVER_CUT, Located, find_chains, is_layout
from prunion.trainer.channels.slots import FIXED, ActivationSlots, Flow, Read, once, varying
from prunion.trainer.channels.walk import KEEPS_ZERO, flow_slots

__all__ = ["GateSite", "Units", "find_units"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GateSite:
    """Where a gate multiplies an activation by its channels' switches.

    Attributes:
        node: name of the graph node whose output is gated.
        readers: names of the nodes that read the gated value; empty means all of them.
        units: unit of each channel, -1 where the channel has no switch.
        axis: along which the channels lie; 1 but behind layers that work on the last one.
        folded: the per-domain BatchNorms before it take the switch in at export; otherwise the
            gate stays in the exported graph as a multiplication.
    """

    node: str
    readers: tuple[str, ...]
    units: np.ndarray
    folded: bool
    axis: int = 1


@dataclass(frozen=True)
class Units:
    """The channel units of one backbone.

    Attributes:
        table: which slots each unit has; what the checkpoint and the bundle store.
        gates: where switches act.
        channels: units of the channels of activations, by node name.
        axes: the axis along which they lie.
        feature_units: unit of each feature that the heads read, `[F]`.
        whole: why channels are kept whole, by the node that needs all of them.
        kept: weights of the layers that were asked to stay whole.
    """

    table: UnitTable
    gates: tuple[GateSite, ...]
    channels: dict[str, np.ndarray]
    axes: dict[str, int]
    feature_units: np.ndarray
    whole: dict[str, str]
    kept: frozenset[str] = frozenset()

    def notes(self) -> list[str]:
        """What is kept whole, a line for each reason."""
        nodes: dict[str, list[str]] = {}
        for node, reason in self.whole.items():
            nodes.setdefault(reason, []).append(node)
        more = {reason: f" and {len(x) - 1} more" if x[1:] else "" for reason, x in nodes.items()}
        return [
            f"node {x[0]}{more[reason]}: {reason}; the channels that come in are kept whole"
            for reason, x in nodes.items()
        ]


def find_units(module: fx.GraphModule, keep: Sequence[str] = ()) -> Units:
    """Find the channel units of a traced backbone.

    Args:
        module: result of `trace`, ending in a feature vector `[N, F]`.
        keep: layers whose output channels are never removed, by name or pattern (`layer1.*`).

    Raises:
        ConfigError: one of `keep` is no layer.
        UnsupportedGraphError: no channel is left that could be removed, or an image's answer
            depends on the others in its batch.
    """
    flow = flow_slots(module)
    layers = {
        tensor.removesuffix(".weight"): flow.outputs.get(tensor, ids)
        for (tensor, axis), ids in flow.weights.items()
        if axis == 0 and tensor.endswith(".weight") and tensor != f"{PIXEL_NORM}.weight"
    }
    kept = set[str]()
    for pattern in keep:
        found = [n for n in layers if fnmatch(n, pattern) or fnmatch(given_name(n), pattern)]
        if not found:
            raise ConfigError(
                f"[backbone] keep: {pattern!r} is no layer: give names or patterns such as "
                f"{', '.join(given_name(name) for name in list(layers)[:3])}"
            )
        kept |= {f"{name}.weight" for name in found}
        for name in found:
            flow.sets.tie(layers[name], torch.full_like(layers[name], FIXED))
    for (tensor, _), ids in flow.weights.items():
        if tensor in flow.untouched:
            flow.sets.fix(ids)
    places = _places(flow)
    number = _number_roots(flow)
    if keep and not number and not flow.whole:
        raise ConfigError(
            f"[backbone] keep = {', '.join(keep)} keeps every channel of the network: leave out "
            "the layers that may be cut"
        )
    if not number:
        raise UnsupportedGraphError(_nothing_left(flow, keep))
    slots = {key: _units_of(flow, ids, number) for key, ids in flow.weights.items()}
    table = UnitTable(len(number), slots, _layers(flow))
    units = {node: (_units_of(flow, ids, number), axis) for node, (ids, axis) in places.items()}
    return Units(
        table=table,
        gates=tuple(_norm_gates(flow, units) + _read_gates(flow, units)),
        channels={node.name: value for node, (value, _) in units.items()},
        axes={node.name: axis for node, (_, axis) in units.items()},
        feature_units=slots["head_weight", 1],
        whole={node.name: reason for node, reason in flow.whole.items()},
        kept=frozenset(kept),
    )


Places = dict[fx.Node, tuple[torch.Tensor, int]]  # ids of the channels, and their axis


def _places(flow: Flow) -> Places:
    """Where each activation's channels lie; those that lie along no one axis are kept whole."""
    while True:
        table = flow.sets.table()
        places, again = _located(flow, table)

        def located(node: fx.Node, table: torch.Tensor = table) -> Located | None:
            if node.op == "get_attr":
                return NEVER_CUT
            value = flow.values[node]
            if not isinstance(value, ActivationSlots):
                return None
            place = _along(table, value.ids)
            return None if place is None else (table[place[0]].numpy() - 1, place[1])

        chains = find_chains(flow.module, located)
        for node, source in chains.whole.items():
            again |= _fix(flow, source, node, f"{op_name(node)} mixes channels with positions")
        if not again:
            return places


def _located(flow: Flow, table: torch.Tensor) -> tuple[Places, bool]:
    places: Places = {}
    again = False
    for node, value in flow.values.items():
        if not isinstance(value, ActivationSlots):
            continue
        place = _along(table, value.ids)
        if place is not None:
            places[node] = place
            source: Any = node.args[0] if node.args else None
            cut = op_name(node) == "slice" and not is_layout(node)
            if cut and node.args[1] in _differing(table, flow.values[source].ids):
                again |= _fix(flow, source, node, "it takes some of the channels on that axis")
        elif not is_layout(node) or any(not is_layout(user) for user in node.users):
            again |= _fix(flow, node, node, "its channels lie along several axes")
    return places, again


def _along(table: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, int] | None:
    """Ids of the channels and the one axis along which they differ; axis 1 where none do."""
    axes = _differing(table, ids)
    if len(axes) > 1:
        return None
    axis = axes[0] if axes else min(1, ids.dim() - 1)
    line = ids.movedim(axis, 0)
    return line.reshape(len(line), -1)[:, 0], axis


def _differing(table: torch.Tensor, ids: torch.Tensor) -> list[int]:
    return varying(table[once(ids)])


def _fix(flow: Flow, source: fx.Node, node: fx.Node, reason: str) -> bool:
    value, fixed = flow.values[source], False
    for part in value if isinstance(value, tuple) else [value]:
        if isinstance(part, ActivationSlots):
            fixed |= flow.sets.fix(part.ids)
    if fixed:
        flow.whole.setdefault(node, reason)
    return fixed


def _nothing_left(flow: Flow, keep: Sequence[str]) -> str:
    reasons = [f"node {node.name}: {reason}" for node, reason in flow.whole.items()]
    why = reasons[0] if reasons else "every layer's channels are kept"
    more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
    kept = f"; keep = {', '.join(keep)} keeps layers too" if keep else ""
    return (
        f"{why}{more}: no channel of the network could be removed{kept}; end it before that node "
        "([backbone] cut), or choose a network whose layers are followed by BatchNorm"
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


def _layers(flow: Flow) -> tuple[Layer, ...]:
    positions: dict[str, int] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for weight, shape, count in flow.layers:
        positions[weight] = positions.get(weight, 0) + count
        shapes[weight] = shape
    return tuple(Layer(weight, shapes[weight], positions[weight]) for weight in shapes)


def _norm_gates(flow: Flow, units: dict[fx.Node, Located]) -> list[GateSite]:
    """One gate behind each BatchNorm's activation (or behind the addition it feeds)."""
    places = dict.fromkeys(_gate_place(flow, norm) for norm in flow.norms)
    sites = []
    for node in places:
        channels, axis = units[node]
        if (channels >= 0).any():
            sites.append(GateSite(node.name, (), channels, folded=True, axis=axis))
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


def _read_gates(flow: Flow, units: dict[fx.Node, Located]) -> list[GateSite]:
    """Explicit gates where something reads a channel that BatchNorm does not bring to zero."""
    bare: dict[fx.Node, list[Read]] = {}
    for read in flow.reads:
        if not _off_is_zero(flow, read.ids, read.zero):
            bare.setdefault(read.source, []).append(read)
    return [
        GateSite(
            source.name,
            tuple(read.node.name for read in reads),
            units[source][0],
            folded=False,
            axis=units[source][1],
        )
        for source, reads in bare.items()
    ]
