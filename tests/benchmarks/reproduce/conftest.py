"""A benchmark that a row learns in seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunion.trainer.backbone import PAPER_NETS
from tests.benchmarks.reproduce.archives.small import coloured, write_decathlon
from tests.benchmarks.reproduce.little import Little


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Decathlon of three domains, and a network that learns it in seconds."""
    monkeypatch.setitem(PAPER_NETS, "wrn28_4", Little)
    named = {"imagenet12": ["b", "a"], "gtsrb": ["2", "10"], "vgg-flowers": ["x", "y", "z"]}
    domains = {
        name: {
            part: coloured(classes, 6, seed) for seed, part in enumerate(("train", "val", "test"))
        }
        for name, classes in named.items()
    }
    write_decathlon(tmp_path / "data", domains)
    return tmp_path / "data"
