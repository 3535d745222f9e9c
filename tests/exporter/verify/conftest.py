"""A bundle that holds, and a copy of it to damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from prunion.exporter.bundle import export_bundle
from prunion.exporter.options import ExportOptions


@pytest.fixture(scope="module")
def good(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("verify") / "good.prunion"
    export_bundle(tiny, output, ExportOptions(fp16=True))
    return output


@pytest.fixture(scope="session")
def eight(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of every variant."""
    output = tmp_path_factory.mktemp("int8") / "eight.prunion"
    options = ExportOptions(fp16=True, int8=True, int8_max_drop=20, int8_images=4, uint8=True)
    export_bundle(tiny, output, options)
    return output


@pytest.fixture
def copy(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "copy.prunion"))
