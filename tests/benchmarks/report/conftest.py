"""A run with all that belongs to it, and its page."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from prunion.exporter.bundle import export_bundle
from prunion.runtime import bench, evaluate
from prunion.runtime.base import write_json
from prunion.trainer.config import load_config
from prunion.trainer.run import train_with_baseline
from tests.benchmarks.report.reported import sources
from tests.support.tiny_run import tiny_run


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run and its baseline, the bundle, an evaluation and a measurement."""
    folder = tmp_path_factory.mktemp("report")
    run_file = tiny_run(folder)
    text = run_file.read_text("utf-8").replace('test"\n', 'test"\nreference = 40.0\n')
    run_file.write_text(text, "utf-8")
    train_with_baseline(load_config(run_file), folder / "run")
    bundle = folder / "tiny.prunion"
    export_bundle(folder / "run", bundle)
    found = evaluate(bundle, folder / "data" / "warm" / "test", "warm")
    write_json(folder / "eval.json", found.record())
    write_json(
        folder / "bench.json", bench(bundle, batches=(1,), seconds=0.02, fresh=False).to_json()
    )
    return folder


@pytest.fixture(scope="session")
def page(made: Path) -> str:
    from prunion.benchmarks.report import write_report

    write_report(sources(made), made / "report.html", pictures=made / "pictures")
    return (made / "report.html").read_text("utf-8")


@pytest.fixture
def own_run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "run", tmp_path / "run"))
