"""A network in hand is compared with the one that a run goes on with."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from prunion.runtime.base import write_json
from prunion.runtime.errors import CheckpointError
from prunion.trainer.config import GRAPH, STATE, load_config
from prunion.trainer.run import train_with_baseline
from prunion.trainer.run.folder import HANDED, check_network, check_same_network, network_note
from prunion.trainer.run.folder.beginning import Beginning
from tests.support.tiny_run import tiny_run


def net(width: int, seed: int = 0, **more: nn.Module) -> nn.Module:
    torch.manual_seed(seed)
    layers = {"a": nn.Conv2d(3, width, 3), "n": nn.BatchNorm2d(width), **more}
    return nn.ModuleDict(layers)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run's folder, as far as this reads it, of a network of 24 channels."""
    note(tmp_path, {HANDED: network_note(net(24))})
    tensors = {"a.weight": [24, 3, 3, 3], "n.running_mean": [24], "root.constant_add": [7]}
    nodes = [{"op": "get_attr", "tensor": k, "shape": v} for k, v in tensors.items()]
    write_json(tmp_path / GRAPH, {"nodes": [{"op": "placeholder"}, *nodes]})
    return tmp_path


def note(folder: Path, facts: dict[str, object]) -> None:
    meta = {"prunion": json.dumps({"facts": facts})}
    save_file({"x": torch.zeros(1)}, folder / STATE, meta)


def check(model: nn.Module, folder: Path) -> None:
    check_network(model, folder, Beginning(resumes=True, begun=folder))


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (net(64), r"whose a\.weight is \[64, 3, 3, 3\] and was \[24, 3, 3, 3\]"),
        (net(24, b=nn.Conv2d(24, 8, 1)), r"which has b\.weight, that had none"),
        (nn.Sequential(nn.Conv2d(3, 24, 3)), r"which has no a\.weight"),
    ],
)
def test_another_network_is_not_gone_on_with(folder: Path, other: nn.Module, told: str) -> None:
    """It was dropped, and the answer was the old one's, without a word."""
    with pytest.raises(CheckpointError, match=f"another network than .*{told}: give the network"):
        check(other, folder)


def test_other_numbers_are_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A network of random weights has others whenever it is made."""
    check(net(24), folder)
    check(nn.DataParallel(net(24)), folder)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        check(net(24, seed=1), folder)
    assert "has other weights" in caplog.text and "the run goes on with its own" in caplog.text


def test_a_run_that_noted_nothing_is_compared_by_its_graph(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    note(folder, {})
    with pytest.raises(CheckpointError, match=r"whose a\.weight is \[64, 3, 3, 3\]"):
        check(net(64), folder)
    check(net(24, seed=1), folder)
    (folder / GRAPH).unlink()  # of an earlier prunion still
    check(net(64), folder)
    assert not caplog.records


def test_a_weight_that_is_computed_may_have_another_shape(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is called as the layer's own is: the very network was refused."""
    note(folder, {})
    nodes = [
        {"op": "get_attr", "name": "w", "tensor": "a.weight", "shape": [24, 3, 5, 5]},
        {"op": "get_attr", "name": "m", "tensor": "n.running_mean", "shape": [24]},
        {"target": "conv2d.default", "args": [{"node": "x"}, {"node": "w"}]},
    ]
    write_json(folder / GRAPH, {"nodes": nodes})
    check(net(24), folder)
    assert r"whose a.weight is [24, 3, 3, 3] and was [24, 3, 5, 5], unless" in caplog.text
    with pytest.raises(CheckpointError, match=r"whose n\.running_mean is \[64\]"):
        check(net(64), folder)


def test_buffers_that_no_file_holds_make_no_other_network(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One that `forward` makes is there after the first answer."""
    model = net(24)
    model["a"].register_buffer("grid", torch.zeros(3), persistent=False)
    check(model, folder)
    assert not caplog.records


def test_a_baseline_begins_with_the_weights_of_its_run(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Or what is said of pruning is of two networks."""
    baseline = folder / "baseline"
    check_same_network(net(24), folder, baseline)
    with pytest.raises(CheckpointError, match=r"than the network handed over has, "):
        check_same_network(net(24, seed=1), folder, baseline)
    config = load_config(tiny_run(tmp_path))
    with pytest.raises(CheckpointError, match=r"began with other weights .* by pruning alone"):
        train_with_baseline(config, folder, resume=True, model=net(24, seed=1))
    baseline.mkdir()
    note(baseline, {HANDED: network_note(net(24))})
    check_same_network(net(24, seed=1), folder, baseline)  # both go on with their own
    note(baseline, {HANDED: network_note(net(24, seed=1))})
    with pytest.raises(CheckpointError, match=r"its baseline, .*: remove .*baseline, and give"):
        check_same_network(net(24), folder, baseline)
    assert not caplog.records
    note(folder, {})
    check_same_network(net(24), folder, baseline)
    assert "nobody noted what weights" in caplog.text
