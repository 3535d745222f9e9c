"""What the machine tells of itself around a bench: its state, and the energy that calls take."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from prunion.runtime.base import (
    MachineState,
    Meter,
    energy_meters,
    measure_energy,
    open_gpu,
    read_state,
)
from prunion.runtime.measure.benchmark.outcome import Energy

__all__ = ["Sensors", "open_sensors"]

# Counters of energy move every 100 ms or so, and idle takes no longer to see.
LEAST_ENERGY_S, MOST_ENERGY_S, IDLE_S = 0.5, 5.0, 0.5


@dataclass(frozen=True)
class Sensors:
    """What this machine has.

    Attributes:
        meters: of energy; empty where it does not tell.
        state: reads its clocks and temperatures.
    """

    meters: list[Meter]
    state: Callable[[], MachineState]

    def idle_watts(self) -> dict[str, float]:
        """What the machine takes by meter while nothing is asked of it."""
        if not self.meters:
            return {}
        idle = measure_energy(self.meters, lambda: time.sleep(IDLE_S), 0.0)
        return {name: joules / idle.seconds for name, joules in idle.joules.items()}

    def energy(
        self, calls: Mapping[str, Callable[[], object]], batch: int, seconds: float
    ) -> list[Energy]:
        """Each case alone, since meters are too slow for the blocks that take turns."""
        if not self.meters:
            return []
        spent = min(max(seconds, LEAST_ENERGY_S), MOST_ENERGY_S)
        found = []
        for name, call in calls.items():
            used = measure_energy(self.meters, call, spent)
            images = used.calls * batch
            found.append(Energy(name, batch, {k: x / images for k, x in used.joules.items()}))
        return found


def open_sensors(*, gpu: bool) -> Sensors:
    """Those of the machine, and of its GPU where that is what answers."""
    opened = open_gpu() if gpu else None
    return Sensors(energy_meters(gpu=opened), partial(read_state, gpu=opened))
