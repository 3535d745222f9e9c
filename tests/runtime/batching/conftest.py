"""The toy bundle as a loaded model, and a folder of packs, watched."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from prunion.runtime.batching import Catalogue, PackFolder, Watcher
from prunion.runtime.model import Model, load


@pytest.fixture
def model(bundle_path: Path) -> Iterator[Model]:
    with load(bundle_path, backend="cpu", threads=1) as model:
        yield model


@pytest.fixture
def folder(tmp_path: Path) -> PackFolder:
    (tmp_path / "packs").mkdir()
    return PackFolder(tmp_path / "packs")


@pytest.fixture
def catalogue(model: Model, folder: PackFolder) -> Catalogue:
    return Catalogue(model, watched_folder=folder)


@pytest.fixture
def watcher(folder: PackFolder, catalogue: Catalogue) -> Watcher:
    return Watcher(folder, catalogue)
