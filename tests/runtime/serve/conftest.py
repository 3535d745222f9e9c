"""Fixtures of the server's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from prunion.runtime.model import Model, load


@pytest.fixture
def model(bundle_path: Path) -> Iterator[Model]:
    with load(bundle_path, backend="cpu", threads=1) as model:
        yield model
