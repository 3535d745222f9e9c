"""Pictures of sweeps are files here: that they can be painted, `test_same_images.py` shows."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest


def _write(_: object, path: Path, **__: object) -> None:
    Path(path).write_bytes(b"a picture")


@pytest.fixture(autouse=True)
def _pictures_are_not_painted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two take a quarter of a second, at the end of every sweep."""
    if importlib.util.find_spec("matplotlib") is not None:
        monkeypatch.setattr("matplotlib.figure.Figure.savefig", _write)
