"""Fixtures of the runtime's tests."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest


@pytest.fixture(scope="session")
def toy() -> ModuleType:
    """The helpers of `toy_bundle.py`."""
    pytest.importorskip("onnx", reason="the toy bundle is written with onnx")
    return importlib.import_module("tests.support.toy_bundle")


@pytest.fixture(scope="session")
def bundle_path(toy: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that tests only read."""
    return toy.make_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def own_bundle(toy: ModuleType, tmp_path: Path) -> Path:
    """A bundle that a test may damage."""
    return toy.make_bundle(tmp_path)


@pytest.fixture
def batch(toy: ModuleType) -> np.ndarray:
    """`[6, 3, H, W]` float32 noise."""
    shape = (6, 3, toy.HEIGHT, toy.SIDE_WIDTH)
    return np.random.default_rng(1).standard_normal(shape, dtype=np.float32)
