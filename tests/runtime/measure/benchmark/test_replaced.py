"""A bundle that is replaced or removed while it is measured: the figures are of one alone."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from prunion.runtime.bundle import open_bundle
from prunion.runtime.measure import bench
from prunion.runtime.measure.benchmark import together
from prunion.runtime.measure.benchmark.contenders import Setup
from prunion.runtime.measure.benchmark.fresh import Fresh, measure_fresh
from prunion.runtime.measure.benchmark.rivals import all_contenders

onnx = pytest.importorskip("onnx")
pytestmark = pytest.mark.skipif(os.name != "posix", reason="open files outlive their names there")


@pytest.mark.usefixtures("nothing_fresh")
@pytest.mark.parametrize("what", ["replaced", "removed", "left"])
def test_sizes_are_those_of_what_was_measured(
    own_bundle: Path,
    toy: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    """They were looked up at the end: another bundle's, or all that was measured was lost."""
    sizes = {name: (own_bundle / name).stat().st_size for name in open_bundle(own_bundle).sizes}
    other, time = toy.make_bundle(tmp_path / "other"), together._time
    (other / "model.onnx").write_bytes((other / "model.onnx").read_bytes() + b" ")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)

    def timed(*arguments: object) -> object:
        if what == "left":
            os.chdir(tmp_path / "elsewhere")
        else:
            shutil.rmtree(own_bundle)
        if what == "replaced":
            shutil.move(other, own_bundle)
        return time(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(together, "_time", timed)
    report = bench(own_bundle.name, batches=(1,), seconds=0.01, threads=1)
    assert report.file_bytes == sizes


def test_a_fresh_process_measures_what_it_is_told_or_nothing(
    own_bundle: Path, toy: ModuleType, tmp_path: Path
) -> None:
    setup = Setup(str(own_bundle), threads=1)
    mixed = all_contenders(setup)[0][0]
    assert isinstance(measure_fresh(setup, mixed.name, mixed.digest, 1), Fresh)
    tables = toy.make_tables()
    other = toy.make_bundle(tmp_path / "other", replace(tables, weight=-tables.weight))
    shutil.rmtree(own_bundle)
    shutil.move(other, own_bundle)
    told = measure_fresh(setup, mixed.name, mixed.digest, 1)
    assert isinstance(told, str) and "is opened from is another one by now" in told


def test_a_graph_in_a_rivals_place_is_another_rival(bundle_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    shutil.copy(bundle_path / "model.onnx", path)
    setup = Setup(str(bundle_path), threads=1, against=(str(path),))
    before = all_contenders(setup)[1][0].digest
    path.write_bytes(path.read_bytes() + b" ")
    assert all_contenders(setup)[1][0].digest != before
