"""Sensors and meters on the `/sys` trees of an Orin, a Xavier and a server, written as files."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from prunion.runtime.base import (
    MachineState,
    energy_meters,
    measure_energy,
    open_gpu,
    read_state,
    slowed_down,
    state_text,
)

CPU, ZONE = "sys/devices/system/cpu", "sys/class/thermal/thermal_zone"
# Orin Nano, JetPack 6: hwmon under the i2c driver; channel 3's label is the chip's own sum.
INA = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1"
ORIN = {
    "var/lib/nvpmodel/status": "pmode:0000",
    "etc/nvpmodel.conf": "# a comment\n< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=7W >",
    f"{CPU}/cpu0/cpufreq/scaling_governor": "schedutil",
    f"{CPU}/cpu0/cpufreq/scaling_cur_freq": 729600,
    f"{CPU}/cpu0/cpufreq/scaling_max_freq": 1510400,
    f"{CPU}/cpu0/cpufreq/cpuinfo_max_freq": 1510400,
    f"{CPU}/cpu4/cpufreq/scaling_cur_freq": 1510400,
    "sys/class/devfreq/15340000.vic/cur_freq": 435200000,
    "sys/class/devfreq/17000000.gpu/cur_freq": 306000000,
    "sys/class/devfreq/17000000.gpu/max_freq": 624750000,
    "sys/class/devfreq/17000000.gpu/governor": "nvhost_podgov",
    f"{ZONE}0/type": "cpu-thermal",
    f"{ZONE}0/temp": 47718,
    f"{ZONE}0/trip_point_0_type": "active",
    f"{ZONE}0/trip_point_0_temp": 35000,
    f"{ZONE}0/trip_point_1_type": "passive",
    f"{ZONE}0/trip_point_1_temp": 99000,
    f"{ZONE}0/trip_point_2_type": "critical",
    f"{ZONE}0/trip_point_2_temp": 104500,
    f"{ZONE}2/type": "cv0-thermal",
    f"{ZONE}8/type": "tj-thermal",
    f"{ZONE}8/temp": 48562,
    "sys/class/hwmon/hwmon3/oc3_event_cnt": 37,
    f"{INA}/in1_label": "VDD_IN",
    f"{INA}/in1_input": 5000,
    f"{INA}/curr1_input": 1200,
    f"{INA}/in2_label": "VDD_CPU_GPU_CV",
    f"{INA}/in2_input": 5000,
    f"{INA}/curr2_input": 400,
    f"{INA}/in3_label": "NC",
    f"{INA}/in3_input": 5000,
    f"{INA}/curr3_input": 0,
    f"{INA}/in7_label": "sum of shunt voltages",
    f"{INA}/in7_input": 80,
}
# AGX Xavier, JetPack 4: two chips, iio, and no rail that holds all the others.
IIO = "sys/bus/i2c/drivers/ina3221x"
XAVIER = {
    "var/lib/nvpmodel/status": "pmode:0002 fmode:quiet",
    "etc/nvpmodel.conf": "< POWER_MODEL ID=2 NAME=MODE_15W >",
    f"{CPU}/cpu0/cpufreq/scaling_governor": "performance",
    f"{CPU}/cpu0/cpufreq/scaling_cur_freq": 1190400,
    f"{CPU}/cpu0/cpufreq/scaling_max_freq": 1190400,
    "sys/class/devfreq/17000000.gv11b/cur_freq": 675750000,
    "sys/class/devfreq/17000000.gv11b/max_freq": 675750000,
    "sys/class/devfreq/17000000.gv11b/governor": "performance",
    f"{ZONE}0/type": "CPU-therm",
    f"{ZONE}0/temp": 84500,
    f"{ZONE}0/trip_point_0_type": "passive",
    f"{ZONE}0/trip_point_0_temp": 86000,
    f"{IIO}/1-0040/iio:device0/rail_name_0": "GPU",
    f"{IIO}/1-0040/iio:device0/in_power0_input": 1500,
    f"{IIO}/1-0040/iio:device0/rail_name_1": "CPU",
    f"{IIO}/1-0040/iio:device0/in_power1_input": 800,
    f"{IIO}/1-0041/iio:device1/rail_name_2": "SYS5V",
    f"{IIO}/1-0041/iio:device1/in_power2_input": 2500,
}
RAPL = "sys/class/powercap/intel-rapl:0"
SERVER = {
    f"{CPU}/cpu0/cpufreq/scaling_governor": "performance",
    f"{CPU}/cpu0/thermal_throttle/package_throttle_count": 3,
    f"{CPU}/cpu1/thermal_throttle/package_throttle_count": 3,
    f"{ZONE}0/type": "x86_pkg_temp",
    f"{ZONE}0/temp": 61000,
    f"{ZONE}0/trip_point_0_type": "passive",
    f"{ZONE}0/trip_point_0_temp": -274000,
    f"{RAPL}/name": "package-0",
    f"{RAPL}/energy_uj": 4_000_000,
    f"{RAPL}/max_energy_range_uj": 262_143_328_850,
    f"{RAPL}:0/name": "core",
    f"{RAPL}:0/energy_uj": 1_000_000,
    f"{RAPL}:1/name": "dram",
    f"{RAPL}:1/energy_uj": 2_000_000,
}


def tree(root: Path, files: dict[str, object]) -> Path:
    for name, value in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{value}\n")
    return root


def test_an_orin_tells_its_mode_clocks_and_temperatures(tmp_path: Path) -> None:
    state = read_state(tree(tmp_path, ORIN))
    assert (state.power_mode, state.governor) == ("15W (0)", "schedutil")
    assert (state.cpu_mhz, state.cpu_limit_mhz) == (1510.4, 1510.4)
    assert (state.gpu_mhz, state.gpu_limit_mhz) == (306.0, 624.75), "not the other devices'"
    assert state.temperatures == {"cpu-thermal": 47.718, "tj-thermal": 48.562}, "cv0 is off"
    assert state.trips == {"cpu-thermal": 99.0}, "a fan's start is no limit"
    assert state.slowed == {"over-current oc3": 37}
    assert state_text(state) == (
        "power mode 15W (0), governor schedutil, CPU 1510 of 1510 MHz, GPU 306 of 625 MHz, "
        "tj-thermal 49 °C"
    )


def test_a_xavier_of_jetpack_4_tells_them_too(tmp_path: Path) -> None:
    state = read_state(tree(tmp_path, XAVIER))
    assert (state.power_mode, state.gpu_mhz) == ("MODE_15W (2)", 675.75)
    assert slowed_down(state, state) == "CPU-therm at 84 °C, slowed down from 86 °C on"


@pytest.mark.parametrize(
    ("files", "watts"),
    [
        (ORIN, {"VDD_IN": 6.0, "VDD_CPU_GPU_CV": 2.0}),
        (XAVIER, {"GPU": 1.5, "CPU": 0.8, "SYS5V": 2.5}),
    ],
)
def test_a_jetsons_rails_give_energy(
    tmp_path: Path, files: dict[str, object], watts: dict[str, float]
) -> None:
    used = measure_energy(energy_meters(tree(tmp_path, files)), lambda: time.sleep(0.01), 0.05)
    assert used.joules == {k: pytest.approx(v * used.seconds) for k, v in watts.items()}
    assert used.calls >= 2


def test_a_package_counts_energy_and_starts_from_0_again(tmp_path: Path) -> None:
    meters = energy_meters(tree(tmp_path, SERVER))
    assert [x.name for x in meters] == ["package-0", "dram-0"], "the cores are in the package"

    def call() -> None:
        (tmp_path / RAPL / "energy_uj").write_text("1000000\n")
        (tmp_path / f"{RAPL}:1" / "energy_uj").write_text("2500000\n")

    used = measure_energy(meters, call, 0.0)
    wrapped = 262_143.32885 - 4.0 + 1.0
    assert used.joules == {"package-0": pytest.approx(wrapped), "dram-0": pytest.approx(0.5)}


def test_what_is_for_root_alone_or_away_is_not_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_state(tmp_path) == MachineState()
    assert energy_meters(tmp_path) == []
    assert state_text(MachineState()) == "not told"
    tree(tmp_path, SERVER | ORIN)
    plain = Path.read_text

    def guarded(path: Path, *args: str, **options: str) -> str:
        if path.name in ("energy_uj", "temp", "cur_freq") or path.name.startswith("curr"):
            raise PermissionError(13, "Permission denied", str(path))
        return plain(path, *args, **options)

    monkeypatch.setattr(Path, "read_text", guarded)  # tests may run as root
    assert energy_meters(tmp_path) == []
    state = read_state(tmp_path)
    assert (state.temperatures, state.gpu_mhz, state.gpu_limit_mhz) == ({}, None, 624.75)


def test_what_slowed_a_measurement_down_is_one_line(tmp_path: Path) -> None:
    state = read_state(tree(tmp_path, SERVER))
    assert state.trips == {}, "the driver says that no limit is set"
    assert slowed_down(state, state) == ""
    before = read_state(tree(tmp_path, XAVIER | {f"{ZONE}0/temp": 50000}))
    changed = {
        f"{CPU}/cpu0/cpufreq/scaling_max_freq": 806400,
        "sys/class/devfreq/17000000.gv11b/cur_freq": 420750000,
        f"{CPU}/cpu1/thermal_throttle/package_throttle_count": 5,
    }
    line = slowed_down(before, read_state(tree(tmp_path, changed)))
    assert line == (
        "CPU may now reach 806 MHz, before 1190; GPU runs at 421 MHz, before 676; "
        "CPU package too hot slowed down 2 times"
    )
    other = read_state(tree(tmp_path, {f"{CPU}/cpu0/cpufreq/scaling_governor": "schedutil"}))
    assert "governor schedutil, not performance (sudo jetson_clocks)" in slowed_down(other, other)


class NVMLError(Exception):
    """As the binding has it: no kind of OSError."""


def gpu_library(**answers: int) -> SimpleNamespace:
    def refuse(*_: object) -> int:
        raise NVMLError("Not Supported")

    calls = {name: lambda *_, value=value: value for name, value in answers.items()}
    names = ("PowerUsage", "TotalEnergyConsumption", "Temperature", "MaxClockInfo")
    missing = {f"nvmlDeviceGet{x}": refuse for x in names}
    opened = {"nvmlInit": lambda: None, "nvmlDeviceGetHandleByIndex": lambda index: index}
    return SimpleNamespace(**missing | opened | calls)


def test_a_gpu_is_asked_by_nvml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = gpu_library(
        nvmlDeviceGetTemperature=83,
        nvmlDeviceGetTemperatureThreshold=87,
        nvmlDeviceGetClockInfo=1410,
        nvmlDeviceGetCurrentClocksThrottleReasons=0x20 | 0x01,
        nvmlDeviceGetPowerUsage=200_000,
    )
    monkeypatch.setitem(sys.modules, "pynvml", library)
    gpu = open_gpu()
    assert gpu is not None
    state = read_state(tmp_path, gpu)
    assert (state.gpu_mhz, state.gpu_limit_mhz) == (1410.0, None)
    assert slowed_down(state, state) == (
        "GPU at 83 °C, slowed down from 87 °C on; GPU held back by temperature"
    )
    used = measure_energy(energy_meters(tmp_path, gpu), lambda: None, 0.02)
    assert used.joules == {"GPU (NVML)": pytest.approx(200 * used.seconds)}
    library.nvmlDeviceGetTotalEnergyConsumption = lambda _: 5_000
    (meter,) = energy_meters(tmp_path, gpu)
    assert meter.joules is not None
    assert meter.joules() == 5.0


def test_without_a_gpu_or_a_binding_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver() -> None:
        raise NVMLError("Driver Not Loaded")

    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(nvmlInit=no_driver))
    assert open_gpu() is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert open_gpu() is None
