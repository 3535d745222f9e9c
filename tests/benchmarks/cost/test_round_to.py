"""The study of widths cuts one network to one budget by every multiple, and times them in turn."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from prunion.benchmarks.cost.round_to import cuts_of, rows_of
from prunion.runtime.backends import SessionOptions
from prunion.trainer.config import BackboneConfig

pytestmark = pytest.mark.thorough


def test_every_multiple_meets_the_budget_with_widths_of_its_own(tmp_path: Path) -> None:
    config = BackboneConfig("resnet18", weights="none", cut="layer1")
    cuts = cuts_of(config, 32, 0.5, [1, 16], tmp_path)
    for multiple, cut in cuts.items():
        assert cut.macs <= 0.5
        graph = onnx.load(cut.graph).graph
        widths = [x.dims[0] for x in graph.initializer if len(x.dims) == 4 and x.dims[1] > 1]
        assert widths
        assert all(width % multiple == 0 for width in widths)
    options = SessionOptions("cpu", 1, share_arena=False)
    rows = rows_of("resnet18", cuts, 32, 0.5, 2, options, 0.05)
    assert [x.round_to for x in rows] == [1, 16]
    assert rows[0].ratio == 1
    assert all(x.ms > 0 and x.batch == 2 for x in rows)
