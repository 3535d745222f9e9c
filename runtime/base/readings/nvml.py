"""What NVIDIA's management library tells of the GPU, where a binding for it is installed."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

__all__ = ["Gpu", "open_gpu"]

# Bits of the reasons for which a GPU runs below the clocks it was asked for, as in nvml.h.
REASONS = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "temperature",
    0x40: "temperature (hardware)",
    0x80: "power brake",
}
GRAPHICS_CLOCK, CORE_TEMPERATURE, SLOWDOWN_THRESHOLD = 0, 0, 1  # also from nvml.h


@dataclass(frozen=True)
class Gpu:
    """The GPU that a process gets first; every reading is None where the GPU does not tell."""

    library: Any
    handle: Any

    @property
    def joules(self) -> float | None:
        """A counter of energy since the driver was loaded (Volta and newer)."""
        return _scaled(self._asked("nvmlDeviceGetTotalEnergyConsumption"), 1e-3)

    @property
    def watts(self) -> float | None:
        """The board's power now."""
        return _scaled(self._asked("nvmlDeviceGetPowerUsage"), 1e-3)

    @property
    def celsius(self) -> float | None:
        """The core's temperature."""
        return _scaled(self._asked("nvmlDeviceGetTemperature", CORE_TEMPERATURE), 1.0)

    @property
    def slowdown_celsius(self) -> float | None:
        """From this temperature on the hardware slows itself down."""
        found = self._asked("nvmlDeviceGetTemperatureThreshold", SLOWDOWN_THRESHOLD)
        return _scaled(found, 1.0)

    @property
    def mhz(self) -> float | None:
        """Its graphics clock."""
        return _scaled(self._asked("nvmlDeviceGetClockInfo", GRAPHICS_CLOCK), 1.0)

    @property
    def max_mhz(self) -> float | None:
        """Its highest graphics clock."""
        return _scaled(self._asked("nvmlDeviceGetMaxClockInfo", GRAPHICS_CLOCK), 1.0)

    @property
    def slowed_by(self) -> tuple[str, ...]:
        """Why it runs below its clocks at this moment."""
        bits = self._asked("nvmlDeviceGetCurrentClocksEventReasons")
        if bits is None:  # its name until driver 535
            bits = self._asked("nvmlDeviceGetCurrentClocksThrottleReasons")
        return tuple(text for bit, text in REASONS.items() if int(bits or 0) & bit)

    def _asked(self, name: str, *arguments: object) -> Any:
        # A method that a binding or a GPU lacks raises an error of the binding's own.
        return _quietly(lambda: getattr(self.library, name)(self.handle, *arguments))


def open_gpu() -> Gpu | None:
    """The GPU that CUDA would use first; None without one, or without `nvidia-ml-py`."""
    try:
        library = import_module("pynvml")
    except (ImportError, OSError):
        return None

    def first() -> Gpu:
        library.nvmlInit()
        named = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
        if named.startswith(("GPU-", "MIG-")):
            return Gpu(library, library.nvmlDeviceGetHandleByUUID(named))
        return Gpu(library, library.nvmlDeviceGetHandleByIndex(int(named or 0)))

    found: Gpu | None = _quietly(first)
    return found


def _quietly(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception:  # NVMLError has no base but Exception, and comes with the binding
        return None


def _scaled(value: Any, factor: float) -> float | None:
    return None if value is None else float(value) * factor
