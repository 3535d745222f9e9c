"""Making graphs says nothing on the terminal and leaves the user's loggers as they were."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from prunion.exporter.graph import onnx_graph, open_graph
from prunion.exporter.graph.variants.int8 import _quantise
from prunion.exporter.slim import slim_network
from tests.exporter.slim.test_network import switch_off
from tests.support.networks.small import Depthwise, domain_net

ROOT = Path(__file__).parents[4]


def test_quantising_leaves_the_loggers_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(level: int) -> None:
        raise AssertionError("ONNX Runtime's level cannot be read, so it cannot be put back")

    monkeypatch.setattr(onnxruntime, "set_default_logger_severity", refuse)
    monkeypatch.setattr(logging.getLogger(), "level", logging.INFO)
    source, made = tmp_path / "model.onnx", tmp_path / "model.int8.onnx"
    onnx.save(onnx_graph(slim_network(switch_off(domain_net(Depthwise(), (3, 5)))), 8, 8), source)
    image = np.random.default_rng(0).standard_normal((4, 3, 8, 8), np.float32)
    batches = [{"image": image, "domain": np.array([0, 1, 0, 1])}]
    _quantise(source, made, batches, "int8")
    assert logging.getLogger().level == logging.INFO
    told = capfd.readouterr()
    assert "onnxruntime" not in told.err + told.out
    before, after = onnx.load(source).graph, onnx.load(made).graph
    assert list(after.input) == list(before.input)
    assert list(after.output) == list(before.output)
    tables = {"bank", "head_weight", "head_bias"}
    kept = [{x.name: x for x in g.initializer if x.name in tables} for g in (before, after)]
    assert kept[0] == kept[1]
    assert open_graph(made).run(["logits"], batches[0])[0].shape == (4, 5), "with its own tables"


def test_no_file_sets_a_level_for_the_whole_process() -> None:
    for stage in ("runtime", "trainer", "exporter", "benchmarks"):
        for path in (ROOT / stage).rglob("*.py"):
            assert "set_default_logger" not in path.read_text("utf-8"), path
