"""What may slow a machine down: its power mode, governor, clocks and temperatures, at a moment.

Read from files of Linux that need no rights, and of a GPU from NVML. What a machine does not tell,
or tells root alone, is None or left out: a measurement never fails for want of a sensor.
Jetson's files are those of its Developer Guide, "Platform Power and Performance".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from prunion.runtime.base.readings.nvml import Gpu

__all__ = ["MachineState", "read_number", "read_state", "read_text", "slowed_down", "state_text"]

ROOT = Path("/")
JETSON_GPU = re.compile(r"(gv11b|ga10b|gp10b|gm20b|\.gpu|gpu-gpc-\d+)$")
LIMITING = ("passive", "hot", "critical")  # trip points at which clocks fall; `active` starts a fan
# Where no limit is set drivers say 0 °C or below; chips name limits of 40 °C and more.
LOWEST_TRIP_C, NEAR_C = 40.0, 5.0
FELL = 0.95  # clocks waver a little by themselves


@dataclass(frozen=True)
class MachineState:
    """A machine at one moment. Clocks in MHz, temperatures in °C.

    Attributes:
        power_mode: a Jetson's, as `nvpmodel` names it, such as `MODE_30W (2)`.
        cpu_mhz: the highest clock of a core now; `cpu_limit_mhz` is what it may reach now, and
            `cpu_max_mhz` what it could.
        temperatures, trips: by sensor; a trip is the lowest temperature that lowers clocks.
        slowed: counters of times that the hardware slowed itself down, by name.
        gpu_slowed_by: what holds the GPU's clocks down at this moment.
    """

    power_mode: str | None = None
    governor: str | None = None
    cpu_mhz: float | None = None
    cpu_limit_mhz: float | None = None
    cpu_max_mhz: float | None = None
    gpu_governor: str | None = None
    gpu_mhz: float | None = None
    gpu_limit_mhz: float | None = None
    temperatures: dict[str, float] = field(default_factory=dict)
    trips: dict[str, float] = field(default_factory=dict)
    slowed: dict[str, int] = field(default_factory=dict)
    gpu_slowed_by: tuple[str, ...] = ()


def read_state(root: Path = ROOT, gpu: Gpu | None = None) -> MachineState:
    """Read everything that this machine tells. `root` holds `sys`, `etc` and `var`."""
    cores = sorted(root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq"))
    temperatures, trips = _thermal(root)
    device = _jetson_gpu(root)
    governor = mhz = limit = None
    if device is not None:
        governor = read_text(device / "governor")
        mhz, limit = _hertz(device / "cur_freq"), _hertz(device / "max_freq")
    if gpu is not None:
        if gpu.mhz is not None:  # a Jetson's NVML does not tell
            governor, mhz, limit = None, gpu.mhz, gpu.max_mhz
        if gpu.celsius is not None:
            temperatures["GPU"] = gpu.celsius
        if gpu.slowdown_celsius is not None:
            trips["GPU"] = gpu.slowdown_celsius
    return MachineState(
        power_mode=_power_mode(root),
        governor=next((x for core in cores if (x := read_text(core / "scaling_governor"))), None),
        cpu_mhz=_highest(cores, "scaling_cur_freq"),
        cpu_limit_mhz=_highest(cores, "scaling_max_freq"),
        cpu_max_mhz=_highest(cores, "cpuinfo_max_freq"),
        gpu_governor=governor,
        gpu_mhz=mhz,
        gpu_limit_mhz=limit,
        temperatures=temperatures,
        trips=trips,
        slowed=dict(_slow_downs(root)),
        gpu_slowed_by=gpu.slowed_by if gpu else (),
    )


def slowed_down(before: MachineState, after: MachineState) -> str:
    """What may have slowed a measurement down, in one line; empty where nothing is told of it."""
    found = [
        f"{name} at {celsius:.0f} °C, slowed down from {after.trips[name]:.0f} °C on"
        for name, celsius in after.temperatures.items()
        if name in after.trips and celsius >= after.trips[name] - NEAR_C
    ]
    found += _fallen("CPU", before.cpu_limit_mhz, after.cpu_limit_mhz, "may now reach")
    found += _fallen("GPU", before.gpu_limit_mhz, after.gpu_limit_mhz, "may now reach")
    if before.governor == "performance":  # else clocks follow what there is to do
        found += _fallen("CPU", before.cpu_mhz, after.cpu_mhz, "runs at")
    if before.gpu_governor == "performance":
        found += _fallen("GPU", before.gpu_mhz, after.gpu_mhz, "runs at")
    for name, count in after.slowed.items():
        times = count - before.slowed.get(name, count)
        if times > 0:
            found.append(f"{name} slowed down {times} times")
    if after.gpu_slowed_by:
        found.append(f"GPU held back by {' and '.join(after.gpu_slowed_by)}")
    if after.governor not in (None, "performance"):
        fix = "jetson_clocks" if after.power_mode else "cpupower frequency-set -g performance"
        found.append(f"governor {after.governor}, not performance (sudo {fix})")
    return "; ".join(found)


def state_text(state: MachineState) -> str:
    """What a person looks at first, in one line; `not told` where there is nothing."""
    parts = [f"power mode {state.power_mode}"] if state.power_mode else []
    parts += [f"governor {state.governor}"] if state.governor else []
    for name, now, most in (
        ("CPU", state.cpu_mhz, state.cpu_limit_mhz),
        ("GPU", state.gpu_mhz, state.gpu_limit_mhz),
    ):
        if now is not None:
            parts.append(f"{name} {now:.0f}" + (f" of {most:.0f} MHz" if most else " MHz"))
    if state.temperatures:
        name = max(state.temperatures, key=lambda x: state.temperatures[x])
        parts.append(f"{name} {state.temperatures[name]:.0f} °C")
    return ", ".join(parts) or "not told"


def _fallen(who: str, before: float | None, after: float | None, what: str) -> list[str]:
    if before is None or after is None or after >= FELL * before:
        return []
    return [f"{who} {what} {after:.0f} MHz, before {before:.0f}"]


def _power_mode(root: Path) -> str | None:
    """nvpmodel's own files: the number it set last, and the names of the board's modes."""
    number = re.search(r"pmode:(\d+)", read_text(root / "var/lib/nvpmodel/status") or "")
    if number is None:
        return None
    mode = int(number[1])
    modes = read_text(root / "etc/nvpmodel.conf") or ""
    known = re.findall(r"POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)", modes)
    names = {int(text): name.rstrip(">") for text, name in known}
    return f"{names[mode]} ({mode})" if mode in names else str(mode)


def _jetson_gpu(root: Path) -> Path | None:
    found = root.glob("sys/class/devfreq/*")
    return next((x for x in sorted(found) if JETSON_GPU.search(x.name)), None)


def _thermal(root: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Temperatures of all zones, and the lowest trip point of each that lowers clocks."""
    temperatures: dict[str, float] = {}
    trips: dict[str, float] = {}
    for zone in sorted(root.glob("sys/class/thermal/thermal_zone*")):
        name, now = read_text(zone / "type") or zone.name, read_number(zone / "temp")
        if now is None:  # a part that is switched off
            continue
        if name in temperatures:
            name += f" {zone.name}"
        temperatures[name] = now / 1e3
        kinds = [x for x in zone.glob("trip_point_*_type") if read_text(x) in LIMITING]
        told = [read_number(x.with_name(x.name.replace("_type", "_temp"))) for x in kinds]
        limits = [x / 1e3 for x in told if x is not None and x / 1e3 >= LOWEST_TRIP_C]
        if limits:
            trips[name] = min(limits)
    return temperatures, trips


def _slow_downs(root: Path) -> Iterator[tuple[str, int]]:
    """Counters: Intel's of cores and packages too hot, Orin's of too much current."""
    hot: dict[str, int] = {}
    for file in root.glob("sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/*_throttle_count"):
        part = file.name.removesuffix("_throttle_count")
        hot[part] = max(hot.get(part, 0), int(read_number(file) or 0))
    for part, count in sorted(hot.items()):
        yield f"CPU {part} too hot", count
    for file in sorted(root.glob("sys/class/hwmon/hwmon*/oc[0-9]*_event_cnt")):
        events = read_number(file)
        if events is not None:
            yield f"over-current {file.name.removesuffix('_event_cnt')}", int(events)


def _highest(cores: list[Path], name: str) -> float | None:
    found = [x for core in cores if (x := read_number(core / name)) is not None]
    return max(found) / 1e3 if found else None  # kHz


def _hertz(path: Path) -> float | None:
    value = read_number(path)
    return None if value is None else value / 1e6


def read_number(path: Path) -> float | None:
    """The number in a file; None as for `read_text`, or where it is no number."""
    try:
        return float(read_text(path) or "")
    except ValueError:
        return None


def read_text(path: Path) -> str | None:
    """A file's words; None where it is not there, is for root alone, or its sensor is off."""
    try:
        return path.read_text(errors="replace").strip("\0\n ") or None
    except OSError:
        return None
