"""A budget of bytes counts with what torch's exporter makes of an operation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from prunion.exporter.bundle import export_bundle
from prunion.exporter.bundle.manifest import budget_of
from prunion.exporter.graph import rehearse_export
from prunion.runtime.errors import BudgetError
from prunion.trainer.config import BackboneConfig, BudgetConfig, RunConfig, load_config
from prunion.trainer.network import AROUND, load_checkpoint
from prunion.trainer.run import train_run, train_sweep
from tests.support.networks.small import Plain
from tests.support.tiny_run import tiny_run

pytestmark = pytest.mark.thorough


class Pyramid(Plain):
    """Maps are pooled to sizes that do not divide them: each place is a node of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = F.adaptive_avg_pool2d(x, 3)
        return self.bn2(self.conv2(x)).relu().mean((2, 3))


def limited(config: RunConfig, limit: str) -> RunConfig:
    return replace(config, budget=BudgetConfig(limit, "bytes", round_to=1))


def test_a_run_is_refused_before_its_first_step_or_keeps_its_budget(tmp_path: Path) -> None:
    config = load_config(tiny_run(tmp_path, warmup=0, ramp=1, settle=0))
    config = replace(config, backbone=BackboneConfig("written:Pyramid", "python"))
    folder = tmp_path / "out"
    options = {"model": Pyramid(), "check": rehearse_export}
    with pytest.raises(BudgetError, match=r"needs .* bytes: give at least [0-9]") as told:
        train_run(limited(config, "6000"), folder, **options)  # type: ignore[arg-type]
    least = f"{told.value}".rpartition(" ")[2]
    train_run(limited(config, least), folder, **options)  # type: ignore[arg-type]
    assert json.loads((folder / "graph.json").read_text())[AROUND] > 6000
    manifest = export_bundle(folder, tmp_path / "m.prunion")
    assert manifest["budget"]["met"]
    size = (tmp_path / "m.prunion" / "model.onnx").stat().st_size
    assert size <= int(least)
    # A checkpoint of before that was measured; nothing about its training or its export is other.
    loaded = load_checkpoint(folder)
    alive = (loaded.net.switches > 0).any(0).numpy()
    del loaded.net.graph[AROUND]
    budget_of(loaded, alive, int(least))
    told = (
        f"{int(least) + 7:,} bytes, 7 more than its budget allows .* a limit of {int(least) + 7};"
    )
    with pytest.raises(BudgetError, match=told):
        budget_of(loaded, alive, int(least) + 7)


def test_runs_of_a_sweep_know_it_too(tmp_path: Path) -> None:
    config = load_config(tiny_run(tmp_path, warmup=1, ramp=1, settle=1))
    asked = []

    def check(*network: object) -> int:
        asked.append(network)
        return 123_456

    runs = [limited(config, limit) for limit in ("400k", "300k")]
    result = train_sweep(runs, tmp_path / "out", check=check)
    places = [Path(run["folder"]) for run in result.runs]
    assert [json.loads((x / "graph.json").read_text())[AROUND] for x in places] == [123_456] * 2
    assert len(asked) == 1
