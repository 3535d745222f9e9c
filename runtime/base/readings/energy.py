"""Energy that a machine says it took: RAPL and NVML count it, Jetson's INA3221 show power.

A meter counts everything on its rail or package, what other programs take included, idle too.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from prunion.runtime.base.readings.nvml import Gpu
from prunion.runtime.base.readings.sensors import ROOT, read_number, read_text

__all__ = ["INPUT_RAILS", "EnergyUse", "Meter", "energy_meters", "measure_energy"]

# A board's own input: what all its other rails take is in it, so rails are never added up.
INPUT_RAILS = ("VDD_IN", "POM_5V_IN", "VIN_SYS")
UNUSED_RAILS = ("NC", "sum of shunt voltages")
SAMPLE_S = 0.02


@dataclass(frozen=True)
class Meter:
    """One thing whose energy is told.

    Attributes:
        joules: a counter of joules, None where there is only a reading of power.
        wraps_at: where the counter starts from 0 again; 0 if never.
        watts: a reading of power, None where there is a counter.
    """

    name: str
    joules: Callable[[], float | None] | None = None
    wraps_at: float = 0.0
    watts: Callable[[], float | None] | None = None


@dataclass(frozen=True)
class EnergyUse:
    """What some calls took. `joules` by meter, while `calls` ran one after the other."""

    joules: dict[str, float]
    calls: int
    seconds: float


def energy_meters(root: Path = ROOT, gpu: Gpu | None = None) -> list[Meter]:
    """Every meter that answers now; none where the machine does not tell, or root alone is told.

    `root` holds `sys`.
    """
    found = [*_rapl(root), *_ina3221(root)]
    if gpu is not None:
        if gpu.joules is not None:
            found.append(Meter("GPU (NVML)", joules=lambda: gpu.joules))
        elif gpu.watts is not None:
            found.append(Meter("GPU (NVML)", watts=lambda: gpu.watts))
    return found


def measure_energy(meters: list[Meter], call: Callable[[], object], seconds: float) -> EnergyUse:
    """Call for `seconds`, once at least, while the meters run.

    Power is read every 20 ms and taken for the time between; a meter that stops answering on the
    way is left out.
    """
    powers: dict[str, list[float]] = {x.name: [] for x in meters if x.watts is not None}
    ended = threading.Event()

    def sample() -> None:
        while True:
            for meter in meters:
                if meter.watts is not None and (power := meter.watts()) is not None:
                    powers[meter.name].append(power)
            if ended.wait(SAMPLE_S):
                return

    counted = [x for x in meters if x.joules is not None]
    before = {x.name: x.joules() for x in counted if x.joules is not None}
    sampler = threading.Thread(target=sample, daemon=True)
    if powers:
        sampler.start()
    calls, start = 0, time.perf_counter()
    try:
        while calls == 0 or time.perf_counter() - start < seconds:
            call()
            calls += 1
        spent = time.perf_counter() - start
    finally:
        ended.set()
        if powers:
            sampler.join()
    joules: dict[str, float] = {}
    for meter in counted:
        first, last = before[meter.name], meter.joules() if meter.joules else None
        if first is not None and last is not None:
            joules[meter.name] = last - first if last >= first else last - first + meter.wraps_at
    joules |= {name: statistics.fmean(x) * spent for name, x in powers.items() if x}
    return EnergyUse(joules, calls, spent)


def _rapl(root: Path) -> list[Meter]:
    """Intel's and AMD's packages and their memory: cores and caches are in the package already."""
    found = []
    for zone in sorted(root.glob("sys/class/powercap/intel-rapl:*")):
        name, file = read_text(zone / "name") or "", zone / "energy_uj"
        if name.startswith(("package", "dram")) and read_number(file) is not None:
            if name == "dram":  # one for each package
                name = f"dram-{zone.name.split(':')[1]}"
            most = (read_number(zone / "max_energy_range_uj") or 0.0) * 1e-6
            found.append(Meter(name, joules=_scaled(file, 1e-6), wraps_at=most))
    return found


def _ina3221(root: Path) -> list[Meter]:
    """The rails of a Jetson: hwmon from JetPack 5 on, iio before."""
    found = []
    for chip in sorted(root.glob("sys/bus/i2c/drivers/ina3221*/*-00*")):
        for label in sorted(chip.glob("hwmon/hwmon*/in[0-9]*_label")):
            channel, folder = label.name[2:-6], label.parent
            found.append((label, _product(folder, channel)))
        for label in sorted(chip.glob("iio:device*/rail_name_*")):
            channel = label.name.removeprefix("rail_name_")
            found.append((label, _scaled(label.parent / f"in_power{channel}_input", 1e-3)))
    named = [(read_text(label) or "", watts) for label, watts in found]
    return [
        Meter(name, watts=watts)
        for name, watts in named
        if name and name not in UNUSED_RAILS and watts() is not None
    ]


def _product(folder: Path, channel: str) -> Callable[[], float | None]:
    """Volts times amperes, told in thousandths."""

    def watts() -> float | None:
        volts, amperes = (read_number(folder / f"{x}{channel}_input") for x in ("in", "curr"))
        return None if volts is None or amperes is None else volts * amperes * 1e-6

    return watts


def _scaled(file: Path, factor: float) -> Callable[[], float | None]:
    def read() -> float | None:
        value = read_number(file)
        return None if value is None else value * factor

    return read
