"""What a union of channel units costs, in the unit of any kind of budget."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from prunion.runtime.bundle import Profile, UnitTable
from prunion.trainer.config import BudgetConfig, BudgetKind
from prunion.trainer.cost.adapters import adapter_costs
from prunion.trainer.cost.cost_model import CostModel
from prunion.trainer.cost.counted import bytes_pricer, counted_pricer
from prunion.trainer.cost.latency import latency_pricer
from prunion.trainer.network import DomainNet

__all__ = ["Pricer", "make_pricer"]


class Pricer(Protocol):
    """What a union of one network's units costs, in the unit of one kind of budget."""

    @property
    def kind(self) -> BudgetKind:
        """The kind of budget; it says the unit of every cost below."""

    @property
    def units(self) -> UnitTable:
        """The network's units, whatever they are priced by."""

    @property
    def profile(self) -> Profile | None:
        """The measurements behind the prices; None where they are counted."""

    @property
    def full(self) -> float:
        """The whole network's cost; for bytes an upper bound."""

    @property
    def backbone(self) -> float:
        """What a share is a share of: `full`, but of bytes the tensors alone.

        So half of it is never more than half of the whole network's file.
        """

    def of(self, alive: np.ndarray) -> float:
        """Cost of keeping `alive` `[U]` bool: exact; a bound for bytes, predicted for latency."""

    def cost_model(self) -> CostModel:
        """The same as a differentiable share of `full`."""


def make_pricer(config: BudgetConfig, net: DomainNet) -> Pricer:
    """What prices the unions of a network under this budget.

    Raises BudgetError if a latency budget's profile is damaged or of another network.
    """
    if config.kind == "latency":
        return latency_pricer(config.profile, net.units.table)
    if config.kind == "bytes":
        return bytes_pricer(net)
    return counted_pricer(config.kind, net.units.table, adapter_costs(net))
