"""`import prunion` gives what the command line does and the errors, and waits for nothing."""

from __future__ import annotations

import importlib
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

import prunion
from prunion.runtime import errors
from tests.support.tiny_run import tiny_run


def test_every_error_is_at_the_top() -> None:
    assert set(errors.__all__) < set(prunion.__all__)
    for name in errors.__all__:
        assert getattr(prunion, name) is getattr(errors, name)
        assert issubclass(getattr(prunion, name), prunion.PrunionError)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = prunion.nothing  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("bench", "prunion.runtime.measure.benchmark.measure"),
        ("evaluate", "prunion.runtime.measure.evaluation"),
        ("export", "prunion.exporter.api"),
        ("load", "prunion.runtime.model.open"),
        ("prune", "prunion.exporter.training"),
        ("sweep", "prunion.exporter.training"),
        ("train", "prunion.exporter.training"),
        ("verify", "prunion.exporter.api"),
    ],
)
def test_every_verb_is_at_the_top(name: str, place: str) -> None:
    if place.startswith(("prunion.trainer", "prunion.exporter")):
        pytest.importorskip("torch")
    assert getattr(prunion, name) is getattr(importlib.import_module(place), name)
    assert name in dir(prunion)


def test_the_version_is_the_package_s_own() -> None:
    assert prunion.__version__ == importlib.metadata.version("prunion")


def test_importing_it_loads_nothing_heavy() -> None:
    program = """
import sys
from prunion import DomainError, PrunionError
heavy = {"numpy", "torch", "onnx", "onnxruntime", "PIL", "click"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_package_is_the_command_too() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "prunion", "--version"], capture_output=True, text=True, check=True
    )
    assert run.stdout.startswith("prunion, version ")


def test_errors_name_arguments_and_no_options(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    file, out = tiny_run(tmp_path), tmp_path / "out.prunion"
    with pytest.raises(errors.PrunionError, match=r"not empty .* another place with output"):
        prunion.train(file, tmp_path)
    with pytest.raises(errors.PrunionError, match="correct output, or leave out resume=True to"):
        prunion.train(file, tmp_path / "none", resume=True)
    with pytest.raises(errors.ConfigError, match="int8_max_drop 200 is outside"):
        prunion.export(tmp_path, out, int8=True, int8_max_drop=200)
