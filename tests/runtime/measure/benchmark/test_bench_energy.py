"""A bench's report says what an image took, and what may have slowed the machine down."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from prunion.runtime.backends import OrtSession
from prunion.runtime.base import MachineState, Meter
from prunion.runtime.measure import bench, format_report
from prunion.runtime.measure.benchmark import sensors

pytest.importorskip("onnxruntime")
COOL = MachineState(governor="performance", cpu_mhz=2000.0, cpu_limit_mhz=2000.0)
HOT = replace(COOL, temperatures={"tj-thermal": 97.0}, trips={"tj-thermal": 99.0})


def test_the_report_tells_energy_and_slowing_down(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = iter([COOL, HOT])
    rails = [Meter("VDD_IN", watts=lambda: 6.0), Meter("VDD_CPU_GPU_CV", watts=lambda: 2.0)]
    monkeypatch.setattr(sensors, "energy_meters", lambda gpu: rails)
    monkeypatch.setattr(sensors, "read_state", lambda gpu: next(states))
    monkeypatch.setattr(sensors, "LEAST_ENERGY_S", 0.05)
    monkeypatch.setattr(sensors, "IDLE_S", 0.05)
    report = bench(bundle_path, batches=(2,), seconds=0.01, threads=1, fresh=False)
    sessions = ("mixed", "blocked", "pinned:flowers")
    assert {(x.session, x.batch) for x in report.energy} == {(name, 2) for name in sessions}
    for row in report.energy:
        whole, part = (row.joules_per_image[x.name] for x in rails)
        assert whole == pytest.approx(3 * part)
        assert 0 < whole < 6.0, "of one image, not of all"
    assert report.idle_watts == {"VDD_IN": pytest.approx(6.0), "VDD_CPU_GPU_CV": pytest.approx(2)}
    value = report.to_json()
    assert value["after"]["temperatures"] == {"tj-thermal": 97.0}
    text = format_report(report)
    assert "mJ an image" in text
    assert "VDD_CPU_GPU_CV" not in text.split("energy of mixed")[1].split("\n")[0], "in VDD_IN"
    assert "note: may be slowed down: tj-thermal at 97 °C, slowed down from 99 °C on" in text


def test_a_machine_that_does_not_tell_leaves_them_out(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensors, "energy_meters", lambda gpu: [])
    monkeypatch.setattr(sensors, "read_state", lambda gpu: MachineState())
    report = bench(bundle_path, batches=(1,), seconds=0.01, threads=1, fresh=False)
    assert (report.energy, report.idle_watts, report.slowed_down) == ((), {}, "")
    text = format_report(report)
    assert "energy" not in text
    assert "when done:" not in text


def test_engines_tell_their_size_and_memory(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As TensorRT's session has both, and no other."""
    report = bench(bundle_path, batches=(1,), seconds=0.01, threads=1, fresh=False)
    assert report.engines == ()
    monkeypatch.setattr(OrtSession, "engine_bytes", 5000, raising=False)
    monkeypatch.setattr(OrtSession, "memory_bytes", 3 << 20, raising=False)
    report = bench(bundle_path, batches=(1,), seconds=0.01, threads=1, fresh=False)
    assert report.to_json()["engines"][0] == {
        "session": "mixed",
        "bytes": 5000,
        "scratch_bytes": 3 << 20,
    }
    told = "engine of mixed: 5,000 bytes; 3.0 MiB of GPU memory beside its weights"
    assert told in format_report(report)
