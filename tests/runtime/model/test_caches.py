"""A cache is a convenience: whatever is wrong with it, answers go on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from prunion.runtime.base import cache_folder
from prunion.runtime.bundle import open_bundle
from prunion.runtime.model import load
from prunion.runtime.tensorrt import engine_key, write_engine
from prunion.runtime.tensorrt.files import key_place, staleness

Damage = Callable[[Path], object]


def folder_in_place(path: Path) -> None:
    path.unlink()
    path.mkdir()


def link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


DAMAGES: dict[str, Damage] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:20]),
    "binary": lambda path: path.write_bytes(bytes(range(256))),
    "another type": lambda path: path.write_text("[1, 2]"),
    "nested": lambda path: path.write_text("[" * 100_000),
    "a long number": lambda path: path.write_text("1" * 5001),
    "a folder": folder_in_place,
    "a loop": link_to_itself,
}


def answers(bundle: Path, batch: np.ndarray) -> np.ndarray:
    with load(bundle, "cpu", threads=1) as model:
        return model.logits(batch, [0, 1, 2, 0, 1, 2])  # a mixed batch asks for the plan


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_plan(
    bundle_path: Path,
    batch: np.ndarray,
    damage: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PRUNION_CACHE", str(tmp_path / "cache"))
    expected = answers(bundle_path, batch)
    (plan,) = (tmp_path / "cache" / "plans").iterdir()
    DAMAGES[damage](plan)
    np.testing.assert_allclose(answers(bundle_path, batch), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("place", ["cache", "cache/plans"])
def test_a_folder_that_cannot_be_written(
    bundle_path: Path,
    batch: np.ndarray,
    place: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PRUNION_CACHE", str(tmp_path / "cache"))
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text("a file where a folder should be")  # root may write anywhere
    assert len(answers(bundle_path, batch)) == 6


def test_a_user_without_a_home(
    bundle_path: Path, batch: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("PRUNION_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert not cache_folder().exists()
    assert len(answers(bundle_path, batch)) == 6
    assert not cache_folder().exists()


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("which", ["engine", "key"])
def test_a_damaged_engine_is_built_again(
    bundle_path: Path, damage: str, which: str, tmp_path: Path
) -> None:
    key = engine_key(open_bundle(bundle_path), "tensorrt", "10.3.0", sms=[87])
    engine = tmp_path / "x.engine"
    write_engine(engine, key, b"engine" * 9)
    assert staleness(engine, key) == ""
    DAMAGES[damage](engine if which == "engine" else key_place(engine))
    assert staleness(engine, key)
    shutil.rmtree(engine, ignore_errors=True)
