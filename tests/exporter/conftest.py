"""One tiny trained run for every test of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunion.trainer.config import load_config
from prunion.trainer.run import train_run
from tests.support.tiny_run import tiny_run


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of two domains, `warm` (2 classes) and `cold` (3), at 16 px."""
    folder = tmp_path_factory.mktemp("tiny")
    train_run(load_config(tiny_run(folder)), folder / "run")
    return folder / "run"
