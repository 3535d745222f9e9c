"""Every snippet of docs/python.md runs, one after the other, as a reader would type them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torch import nn

from tests.support.tiny_run import tiny_run

pytestmark = pytest.mark.thorough

PAGE = Path(__file__).parents[2] / "docs" / "python.md"


def small() -> nn.Module:
    """Two layers, of which three quarters can go."""
    layers: list[nn.Module] = []
    for inputs in (3, 32):
        layers += [nn.Conv2d(inputs, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_every_snippet_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib").use("Agg")
    # The page's own network has eleven million weights, which prove nothing more here.
    monkeypatch.setattr(pytest.importorskip("torchvision").models, "resnet18", small)
    tiny_run(tmp_path)
    Image.new("RGB", (20, 20), (200, 40, 40)).save(tmp_path / "red.png")
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S)
    assert len(snippets) == PAGE.read_text("utf-8").count("```") // 2
    names: dict[str, Any] = {}
    for snippet in snippets:
        exec(snippet, names)
    assert (tmp_path / "first.prunion").is_dir()
    assert names["result"].budget["kind"] == "macs"
    assert names["result"].budget["met"]
