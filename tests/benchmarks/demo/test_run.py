"""The demo from its first line to its report, on a run that takes seconds."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="needs prunion[report]")
if importlib.util.find_spec("skimage") is None:  # to import it takes a second
    pytest.skip("needs prunion[demo]", allow_module_level=True)

from prunion.benchmarks.demo import run
from tests.support.tiny_run import tiny_run

pytestmark = pytest.mark.thorough


@pytest.mark.usefixtures("nothing_fresh")
@pytest.mark.parametrize("baseline", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_demo_ends_with_a_fair_table_and_a_report(
    baseline: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(run, "_write_run_file", tiny_run)
    monkeypatch.setattr(run, "SIZE", 16)
    monkeypatch.setattr(run, "LATENCY_SECONDS", 0.02)
    monkeypatch.setattr(run, "BENCH_SECONDS", 0.02)
    folder = tmp_path / "demo"
    run.run_demo(folder, baseline=baseline)
    told = capsys.readouterr().out
    assert ("every channel: the same run without pruning" in told) == baseline
    assert ("no rival" in told) != baseline
    page = (folder / "report.html").read_text("utf-8")
    assert "Who shares what they chose" in page
    assert "ms, 1 image" in page
    names = {p.name for p in (folder / "pictures").iterdir()}
    assert {"sharing.svg", "widths.png", "confusion-warm.svg"} <= names
    rows = json.loads((folder / "demo.json").read_text("utf-8"))
    assert ("every_channel" in rows["accuracy"]["warm"]) == baseline
    if baseline:
        assert (folder / "run" / "baseline" / "record.json").is_file()
