"""Hints name a command that works where the user stands."""

from __future__ import annotations

import json
import re
from importlib import metadata
from pathlib import Path

import pytest

from prunion.runtime.base import install, install_hint

ROOT = Path(__file__).parents[3]


class Noted:
    """An installed package with pip's note of where it came from."""

    def __init__(self, note: str | None) -> None:
        self.note = note

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return self.note


def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, note: str | None) -> str:
    module = tmp_path / "lib" / "prunion" / "runtime" / "base" / "install.py"
    monkeypatch.setattr(install, "__file__", str(module))
    monkeypatch.setattr(metadata, "distribution", lambda _: Noted(note))
    return install_hint("ort")


def test_in_a_clone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert install_hint("ort") == "pip install -e '.[ort]'"
    monkeypatch.chdir(ROOT.parent)
    assert install_hint("ort") == f"pip install -e '{ROOT.as_posix()}[ort]'"


def test_from_a_wheel_a_folder_and_an_index(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wheel, clone = tmp_path / "prunion-0.1.0 x-py3-none-any.whl", tmp_path / "clone"
    wheel.touch()
    clone.mkdir()
    note = json.dumps({"url": wheel.as_uri(), "archive_info": {}})
    assert installed(monkeypatch, tmp_path, note) == f"pip install '{wheel.as_posix()}[ort]'"
    note = json.dumps({"url": clone.as_uri(), "dir_info": {"editable": True}})
    assert installed(monkeypatch, tmp_path, note) == f"pip install -e '{clone.as_posix()}[ort]'"
    note = json.dumps({"url": clone.as_uri(), "dir_info": {}})
    assert installed(monkeypatch, tmp_path, note) == f"pip install '{clone.as_posix()}[ort]'"
    index = "pip install 'prunion[ort]'"
    gone = json.dumps({"url": (tmp_path / "gone.whl").as_uri()})
    for note in (None, "", "{", "[]", "{}", '{"url": 5}', '{"url": "https://x/y.whl"}', gone):
        assert installed(monkeypatch, tmp_path, note) == index
    assert install_hint("ort", "--force-reinstall") == index.replace(
        "install", "install --force-reinstall"
    )


def test_no_hint_is_written_by_hand() -> None:
    for stage in ("runtime", "trainer", "exporter", "benchmarks"):
        for file in (ROOT / stage).rglob("*.py"):
            if file.name != "install.py":
                found = re.findall(r"pip install[^\n]*prunion\[", file.read_text("utf-8"))
                assert not found, f"{file}: use install_hint"


def test_every_extra_that_is_advised_exists() -> None:
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    extras = re.search(r"^\[project.optional-dependencies\]\n(.*?)^\[", text, re.M | re.S)
    assert extras
    known = set(re.findall(r"^([\w-]+) = \[", extras[1], re.M))
    for stage in ("benchmarks", "exporter", "runtime", "trainer"):
        for path in (ROOT / stage).rglob("*.py"):
            advised = re.findall(r"install_hint\([\"']([\w-]+)[\"']", path.read_text("utf-8"))
            assert set(advised) <= known, path
