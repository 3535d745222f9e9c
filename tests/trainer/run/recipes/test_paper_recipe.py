"""The paper's recipe: the budget from the first step, rates that fall, prices by slices."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from prunion.runtime.errors import ConfigError
from prunion.trainer.config import TrainConfig
from prunion.trainer.network import load_checkpoint
from prunion.trainer.pruning import Pressure, Schedule
from tests.trainer.run.recipes.trained import recipe, trained


def test_the_papers_recipe_has_no_warm_up_and_no_ramp(tmp_path: Path) -> None:
    trained(tmp_path, recipe='"paper"')
    lines = [json.loads(x) for x in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    steps = [x for x in lines if "cost" in x]
    assert {x["target"] for x in steps} == {0.5}
    assert steps[0]["lambda/warm"] > 0  # every domain is over its budget from the first step


def test_the_papers_rate_falls_once() -> None:
    schedule = Schedule(0, 8, 0, 0.25, steps_down=True)
    assert [schedule.rate(s) for s in range(8)] == [1.0] * 6 + [0.1] * 2
    settling = Schedule(0, 8, 8, 0.25, steps_down=True)
    assert [settling.switch_rate(s) for s in range(8)] == [1.0] * 6 + [0.1] * 2
    assert {schedule.target(s) for s in range(8)} == {0.25}
    assert schedule.phase(0) == "ramp"


def test_the_papers_rates_fall_where_the_run_says() -> None:
    paper = {"recipe": "paper", "warmup": 0, "ramp": 45, "settle": 0}
    schedule = recipe(**paper, drops=[15, 30]).schedule
    for epoch, factor in ((14, 1.0), (15, 0.1), (29, 0.1), (30, 0.01), (44, 0.01)):
        assert schedule.rate(epoch) == schedule.switch_rate(epoch) == pytest.approx(factor)
    learner = recipe(**paper, switch_lr=5e-5).learner
    before = learner.scores.clone()
    learner.update(torch.ones(2, 4), torch.zeros(2, 4))
    torch.testing.assert_close(before - learner.scores, torch.full((2, 4), 5e-5))
    for wrong in ([], [0], [45], 15, [True]):
        with pytest.raises(ConfigError, match=r"\[train\] drops"):
            TrainConfig(**paper, drops=wrong)
    masks = {**paper, "recipe": "prunion", "method": "piggyback", "drops": [15]}
    schedule = recipe(**masks).schedule
    assert [schedule.rate(x) for x in (0, 14, 15, 44)] == [1.0, 1.0, 0.1, 0.1]
    own = {**paper, "recipe": "prunion", "method": "packnet", "drops": [30]}
    turns = recipe((1, 2), **own).schedule  # 45 steps, then 90
    assert (turns.starts, turns.total) == ((0, 45), 135)
    steps = (0, 29, 30, 44, 45, 104, 105, 134)
    assert [turns.rate(x) for x in steps] == [1.0, 1.0, 0.1, 0.1, 1.0, 1.0, 0.1, 0.1]
    assert [turns.task(x) for x in (0, 44, 45, 134)] == [0, 0, 1, 1]
    for key, value in (("drops", [1]), ("switch_lr", 1e-3)):
        with pytest.raises(ConfigError, match=rf'\[train\] {key} is for recipe = "paper"'):
            TrainConfig(**{key: value})


def test_a_run_charges_units_by_the_slices_they_stand_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """resnet18 up to layer1: 3·64 pairs in the stem, 64·64 in each of four convolutions."""
    roots = []
    charge = Pressure.charge

    def seen(self: Pressure, *args: object) -> torch.Tensor:
        roots.append(self.slice_root)
        return charge(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Pressure, "charge", seen)
    trained(tmp_path, recipe='"paper"', warmup=0, ramp=1, settle=0)
    units = load_checkpoint(tmp_path / "out").net.units.table.count
    assert roots
    assert roots == pytest.approx([((3 * 64 + 4 * 64 * 64) / units) ** 0.5] * len(roots))
