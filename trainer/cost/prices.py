"""Every counted kind of budget as one sum of products of kept widths, as a unit table."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx

from prunion.runtime.bundle.unit_table import Layer, Slots, UnitTable
from prunion.trainer.backbone.trace import op_name
from prunion.trainer.channels.walk import LAYOUT
from prunion.trainer.config.run import BudgetConfig
from prunion.trainer.cost.latency import LatencyTable, latency_table
from prunion.trainer.network.masked import DomainNet

__all__ = ["bound_beyond", "priced_table", "table_of"]

FLOAT, INDEX = 4, 8  # bytes of a number and of a channel's index
AROUND = "around the tensors"
# Upper bounds of what an ONNX file holds beside its tensors; seen: 100 to 160 bytes a node.
PER_FILE, PER_NODE, PER_BANK_PART, PER_TENSOR = 2048, 200, 64, 32


def table_of(budget: BudgetConfig, net: DomainNet) -> UnitTable | LatencyTable:
    """What prices a run's unions: a `priced_table`, or for milliseconds the device's profile.

    Raises BudgetError if the profile is damaged or of another network.
    """
    if budget.kind == "latency":
        return latency_table(budget.profile, net.units.table)
    return priced_table(budget.kind, net)


def priced_table(kind: str, net: DomainNet) -> UnitTable:
    """A table whose `params` (kind params) or `macs` (every other kind) is the cost of a union.

    `switches` counts the units. `bytes` bounds the fp32 ONNX file from above: the tensors to
    the byte, and what stands around them by the number of nodes.
    """
    if kind == "switches":
        count = net.units.table.count
        return UnitTable(count, {("units", 0): np.arange(count)}, (Layer("units", (count,), 1),))
    return _bytes_table(net) if kind == "bytes" else net.units.table


def bound_beyond(table: UnitTable | LatencyTable) -> int:
    """By how much the whole network's cost may be overstated: what bounds names and shapes."""
    layers = table.layers if isinstance(table, UnitTable) else ()
    return sum(layer.positions for layer in layers if layer.weight == AROUND)


def _bytes_table(net: DomainNet) -> UnitTable:
    """Pseudo-layers whose positions are bytes for each number of the product."""
    units, domains = net.units, len(net.classes)
    slots: Slots = dict(units.table.slots)
    norms = {f"{name}.{leaf}" for name in net.norms for leaf in ("weight", "bias")}
    layers = [
        Layer(name, tuple(value.shape), FLOAT)
        for name, value in net.trunk.named_parameters()
        if name not in norms and not name.startswith("norms.")
    ]
    for name in net.norms:  # a scale and a shift in every domain's row of the bank
        tensor = f"{name}.running_mean"
        layers.append(Layer(tensor, (len(slots[tensor, 0]),), 2 * FLOAT * domains))
    for site in units.gates:
        if not site.folded:
            slots[f"gate {site.node}", 0] = site.units
            layers.append(Layer(f"gate {site.node}", (len(site.units),), FLOAT * domains))
    widest, features = max(net.classes), len(units.feature_units)
    layers.append(Layer("head_weight", (domains, features, widest), FLOAT))
    layers.append(Layer("head_bias", (), FLOAT * domains * widest))
    layers.append(Layer(AROUND, (), _around(net)))
    return UnitTable(units.table.count, slots, tuple(layers))


def _around(net: DomainNet) -> int:
    """Bytes of names, shapes, attributes and channel indices, at most."""
    nodes = [n for n in net.trunk.graph.nodes if n.op in ("call_function", "call_module")]
    parts = 2 * len(net.norms) + len(net.units.gates)
    indices = sum(INDEX * _channels(n) for n in nodes if op_name(n) in LAYOUT)
    tensors = sum(PER_TENSOR + 2 * len(name) for name, _ in net.trunk.named_parameters())
    return PER_FILE + PER_NODE * len(nodes) + PER_BANK_PART * parts + tensors + indices


def _channels(node: fx.Node) -> int:
    value: Any = node.meta.get("val")
    values: list[Any] = list(value) if isinstance(value, (list, tuple)) else [value]
    return sum(int(v.shape[1]) for v in values if v is not None and v.ndim > 1)
