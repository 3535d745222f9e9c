"""Costs that are counted: weights, multiply-accumulates, switches, and bytes of the file.

Each is one sum over layers of k²·|in|·|out|/groups, times what one such product costs. So one
pricer serves them all: a *price table* is a unit table whose layers' `positions` are that factor;
its `macs` are the cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import fx

from prunion.runtime.bundle import Layer, Profile, SlotUnits, UnitTable
from prunion.trainer.backbone import NORMS, op_name
from prunion.trainer.channels import LAYOUT
from prunion.trainer.config import BudgetKind
from prunion.trainer.cost.adapters import AdapterCost, adapter_costs
from prunion.trainer.cost.cost_model import CostModel
from prunion.trainer.network import AROUND, DomainNet

__all__ = ["CountedModel", "CountedPricer", "bytes_around", "bytes_pricer", "counted_pricer"]

FLOAT, INDEX = 4, 8  # bytes of a number and of a channel's index
# Upper bounds of what an ONNX file holds beside its tensors; seen: 100 to 160 bytes a node.
PER_FILE, PER_NODE, PER_BANK_PART, PER_TENSOR = 2048, 200, 64, 32
NODES_OF_ADAPTER, DIGITS_PER_TENSOR = 12, 16


@dataclass(frozen=True, eq=False)
class CountedPricer:
    """A price table of one network.

    Attributes:
        prices: the price table; its `macs` are the cost.
        overstated: what of the whole network's cost a share is not of: adapters, and by how much it
            may be too high where it is a bound.
    """

    kind: BudgetKind
    units: UnitTable
    prices: UnitTable
    overstated: int = 0

    @property
    def profile(self) -> Profile | None:
        """None: nothing was measured."""
        return None

    @property
    def full(self) -> int:
        """The whole network's cost."""
        return self.of(np.ones(self.units.count, dtype=bool))

    @property
    def backbone(self) -> int:
        """What a share is a share of."""
        return self.full - self.overstated

    def of(self, alive: np.ndarray) -> int:
        """Cost of keeping `alive` `[U]` bool."""
        return self.prices.macs(alive)

    def cost_model(self) -> CountedModel:
        """The same, differentiable."""
        return CountedModel(self.prices, self.full)


def counted_pricer(
    kind: Literal["params", "macs", "switches"],
    units: UnitTable,
    adapters: Sequence[AdapterCost] = (),
) -> CountedPricer:
    """The kinds that a network's unit table alone can price, and what adapters add to them.

    Weights are each applied at one position; switches are the units themselves.
    """
    if kind == "switches":
        every = {("units", 0): np.arange(units.count)}
        alone = UnitTable(units.count, every, (Layer("units", (units.count,), 1),))
        return CountedPricer(kind, units, alone)
    prices = units
    if kind == "params":
        once = tuple(replace(layer, positions=1) for layer in units.layers)
        prices = replace(units, layers=once)
    return _with_adapters(CountedPricer(kind, units, prices), adapters, kind)


def bytes_pricer(net: DomainNet) -> CountedPricer:
    """Bytes of the exported fp32 ONNX file, from above.

    The tensors are counted to the byte; what stands around them, names and shapes, is bounded by
    the number of nodes, and is no less than what a rehearsed export held (`bytes_around`).
    """
    around = _around(net)
    plain = CountedPricer("bytes", net.units.table, _byte_prices(net, around), overstated=around)
    return _with_adapters(plain, adapter_costs(net), "bytes")


def bytes_around(net: DomainNet, alive: np.ndarray, file: int) -> int:
    """What an exported file of so many bytes holds around its tensors, `alive` `[U]` being kept."""
    return file - _byte_prices(net, 0).macs(alive)


class CountedModel(CostModel):
    """Σ over layers of k²·|in|·|out|/groups, times what one such product costs."""

    pairs: torch.Tensor
    scale: torch.Tensor

    def __init__(self, prices: UnitTable, full: float) -> None:
        axes: list[np.ndarray] = []
        pairs: list[list[int]] = []
        scales: list[float] = []
        for layer in prices.layers:
            rest, pair = 1.0, []
            for axis, size in enumerate(layer.shape):
                units = prices.slots.get((layer.weight, axis))
                if units is None:
                    rest *= size
                else:
                    pair.append(len(axes))
                    axes.append(units)
            pairs.append(pair)
            scales.append(rest * layer.positions)
        # A last axis of one channel stands in where a layer can lose channels along one axis only.
        one = len(axes)
        axes.append(np.array([-1]))
        super().__init__(axes, full)
        filled = torch.tensor([(*pair, *([one] * (2 - len(pair)))) for pair in pairs])
        self.register_buffer("pairs", filled, persistent=False)
        scale = torch.tensor(scales, dtype=torch.float64)
        self.register_buffer("scale", scale, persistent=False)

    def absolute(self, kept: torch.Tensor) -> torch.Tensor:
        """What keeping `kept` `[U]` is counted as."""
        widths = self.widths(kept)
        a, b = widths[self.pairs[:, 0]], widths[self.pairs[:, 1]]
        return (self.scale * a * b).sum()


def _with_adapters(
    plain: CountedPricer, adapters: Sequence[AdapterCost], kind: Literal["params", "macs", "bytes"]
) -> CountedPricer:
    """The pricer with the table of adapters in its costs, but not in what a share is a share of."""
    layers, slots = list[Layer](), dict(plain.prices.slots)
    for cost in adapters:
        each = {"params": cost.domains, "macs": cost.positions, "bytes": FLOAT * cost.domains}[kind]
        for part, (axes, times) in cost.parts.items():
            name = f"{cost.weight} {part}"
            layers.append(Layer(name, tuple(cost.shape[axis] for axis in axes), each * times))
            for place, axis in enumerate(axes):
                units = plain.prices.slots.get((cost.weight, axis))
                if units is not None:
                    slots[name, place] = units
    if not layers:
        return plain
    alone = UnitTable(plain.units.count, slots, tuple(layers))
    every = np.ones(plain.units.count, dtype=bool)
    prices = replace(plain.prices, slots=slots, layers=(*plain.prices.layers, *layers))
    return replace(plain, prices=prices, overstated=plain.overstated + alone.macs(every))


def _byte_prices(net: DomainNet, around: int) -> UnitTable:
    """A price table: every tensor is a layer, its `positions` the bytes of one number."""
    units, domains = net.units, len(net.classes)
    slots: SlotUnits = dict(units.table.slots)
    norms = {f"{name}.{leaf}" for name in net.norms for leaf in ("weight", "bias")}
    layers = [
        Layer(name, tuple(value.shape), FLOAT)
        for name, value in net.trunk.named_parameters()
        if name not in norms and not name.startswith(NORMS)
    ]
    layers += [Layer(name, tuple(v.shape), v.element_size()) for name, v in _constants(net).items()]
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
    layers.append(Layer("around the tensors", (), around))
    return UnitTable(units.table.count, slots, tuple(layers))


def _around(net: DomainNet) -> int:
    """Bytes of names, shapes, attributes and channel indices, at most."""
    nodes = [n for n in net.trunk.graph.nodes if n.op in ("call_function", "call_module")]
    parts = 2 * len(net.norms) + len(net.units.gates)
    indices = sum(INDEX * _channels(n) for n in nodes if op_name(n) in LAYOUT)
    names = [*dict(net.trunk.named_parameters()), *_constants(net)]
    tensors = sum(PER_TENSOR + 2 * len(name) for name in names)
    around = PER_FILE + PER_NODE * len(nodes) + PER_BANK_PART * parts + tensors
    # torch's exporter may write one operation as hundreds. The rehearsed cut had fewer indices, and
    # its sizes fewer digits.
    around = max(around, int(net.graph.get(AROUND, 0)) + DIGITS_PER_TENSOR * len(names))
    return around + indices + PER_NODE * NODES_OF_ADAPTER * len(adapter_costs(net))


def _constants(net: DomainNet) -> dict[str, torch.Tensor]:
    """What the graph reads beside parameters and norms' statistics, such as fixed positions."""
    read = {str(node.target) for node in net.trunk.graph.nodes if node.op == "get_attr"}
    return {name: value for name, value in net.trunk.named_buffers() if name in read}


def _channels(node: fx.Node) -> int:
    value: Any = node.meta.get("val")
    values: list[Any] = list(value) if isinstance(value, (list, tuple)) else [value]
    return sum(int(v.shape[1]) for v in values if v is not None and v.ndim > 1)
