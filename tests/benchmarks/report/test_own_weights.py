"""Runs whose domains have weights of their own stand at what they store, not at their trunk."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from prunion.exporter.bundle import export_bundle
from prunion.runtime.base import read_json, write_json
from prunion.trainer.config import load_config
from prunion.trainer.run import train_run
from tests.support.tiny_run import tiny_run

pytest.importorskip("matplotlib", reason="needs prunion[report]")

from prunion.benchmarks.report import write_report
from prunion.benchmarks.report.charts_runs import budget_chart
from prunion.benchmarks.report.subjects import read_subjects


def test_domains_own_weights_are_counted(tmp_path: Path) -> None:
    """A run with a network for each domain stood at 100 % of one backbone's parameters."""
    run_file = tiny_run(tmp_path, method='"finetune"', warmup=0, ramp=0, settle=1)
    train_run(load_config(run_file), tmp_path / "run")
    export_bundle(tmp_path / "run", tmp_path / "x.prunion")
    places = [tmp_path / "run", tmp_path / "x.prunion"]
    assert [read_subjects([place])[0].params_left for place in places] == [2.0, 2.0]
    (both,) = read_subjects(places)
    assert both.params_left == 2.0
    trunk = (tmp_path / "x.prunion" / "model.onnx").stat().st_size
    assert both.file_bytes is not None and both.file_bytes > 1.8 * trunk
    write_report(places, tmp_path / "report.html")
    told = "200.0%, own weights too, as the papers count"
    assert told in (tmp_path / "report.html").read_text("utf-8")
    record = read_json(tmp_path / "run" / "record.json")
    del record["result"]["stored"]  # as an earlier prunion wrote it
    write_json(tmp_path / "run" / "record.json", record)
    (old,) = read_subjects([tmp_path / "run"])
    assert math.isnan(old.params_left)
    assert budget_chart([both, old]) is None
    write_report([tmp_path / "run"], tmp_path / "report.html", force=True)
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "(100.0%) without the domains" in page
