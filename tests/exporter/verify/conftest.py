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


@pytest.fixture
def copy(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "copy.prunion"))
