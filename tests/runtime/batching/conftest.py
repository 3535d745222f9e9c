"""The toy bundle as a loaded model, and a folder of packs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from prunion.runtime.batching import PackFolder
from prunion.runtime.model import Model, load


@pytest.fixture
def model(bundle_path: Path) -> Iterator[Model]:
    with load(bundle_path, backend="cpu", threads=1) as model:
        yield model


@pytest.fixture
def folder(tmp_path: Path) -> PackFolder:
    (tmp_path / "packs").mkdir()
    return PackFolder(tmp_path / "packs")
