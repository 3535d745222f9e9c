"""Recipes that learn no switches: one cut after warm-up, and a ramp of cuts."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prunion.runtime.base import sha256_file
from prunion.runtime.errors import CheckpointError, ConfigError
from prunion.trainer.config import TrainConfig, load_config
from prunion.trainer.learning import Training
from prunion.trainer.network import build_network, load_checkpoint
from prunion.trainer.pruning import Schedule, make_recipe
from prunion.trainer.pruning.rank_and_cut import GreedyRecipe
from prunion.trainer.run import train_run
from prunion.trainer.run.folder.snapshot import save_snapshot
from tests.support.tiny_run import tiny_run
from tests.trainer.run.recipes.trained import trained


def test_cut_once_right_after_warm_up(tmp_path: Path) -> None:
    """The first step after warm-up has the budget, every domain the same units, for good."""
    once = trained(tmp_path, recipe='"once"', ramp=1, settle=1)
    lines = [json.loads(x) for x in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    steps = [x for x in lines if "cost" in x]
    third = len(steps) // 3
    assert {x["cost"] for x in steps[:third]} == {1.0}
    assert {x["cost"] for x in steps[third:]} == {once.budget["value"]}
    assert [x["target"] for x in steps] == [1.0] * third + [0.5] * 2 * third
    switches = load_checkpoint(tmp_path / "out").net.switches
    assert (switches == switches[0]).all()
    assert once.uncut == once.shared == 1.0
    assert once.returned == 0


def test_one_cut_trains_at_the_rates_of_a_ramp() -> None:
    ramp, once = Schedule(4, 8, 12, 0.5), Schedule(4, 8, 12, 0.5, cuts_at_once=True)
    assert [ramp.rate(s) for s in range(24)] == [once.rate(s) for s in range(24)]


def test_importance_is_added_up_over_domains_and_divided_by_the_cost() -> None:
    importance = torch.tensor([[1.0, 2.0, 4.0, 0.0], [4.0, 2.0, 0.0, 3.0]])
    seen: dict[str, np.ndarray] = {}
    for ranking in ("importance", "importance-per-cost", "fisher-per-cost"):

        def select(worth: np.ndarray, used: object, ranking: str = ranking) -> np.ndarray:
            seen[ranking] = worth
            return np.array([True, False, False, True])

        once = make_recipe(
            TrainConfig(recipe="once", ranking=ranking),  # type: ignore[arg-type]
            lambda kept: (kept * kept.new_tensor([1.0, 2.0, 4.0, 1.0])).sum() / 8,
            select,
            beta=0.5,
            domains=2,
            units=4,
            steps_per_epoch=1,
        )
        once.start(importance)
        assert once.cut().tolist() == [[1, 0, 0, 1]] * 2
    assert seen["importance"].tolist() == [5, 4, 4, 3]
    assert seen["importance-per-cost"].tolist() == [40, 16, 8, 24]
    assert seen["fisher-per-cost"].tolist() == [136, 32, 32, 72]


def test_a_greedy_ramp_only_shrinks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In stages, each below its target, all domains alike; the stages alone reach the budget."""
    seen: list[torch.Tensor] = []
    learn = GreedyRecipe.learn

    def kept(self: GreedyRecipe, step: int, *args: Any) -> None:
        learn(self, step, *args)
        seen.append(self.chosen())

    monkeypatch.setattr("prunion.trainer.pruning.rank_and_cut.STAGE", 2)
    monkeypatch.setattr(GreedyRecipe, "learn", kept)
    result = trained(tmp_path, recipe='"greedy"', ramp=4)
    assert all((after <= before).all() for before, after in itertools.pairwise(seen))
    assert all((on == on[0]).all() for on in seen)
    assert len({int(on.sum()) for on in seen}) > 3
    assert result.uncut == result.budget["value"] <= 0.5
    lines = [json.loads(x) for x in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    steps = [x for x in lines if "cost" in x]
    assert steps[-1]["cost"] == result.budget["value"]


def test_a_given_importance_ranks_in_place_of_the_measured(tmp_path: Path) -> None:
    """The same for every domain; a run does not go on with another."""
    config = load_config(tiny_run(tmp_path, recipe='"once"', warmup=0))
    count = build_network(config.backbone, config.input.size, [2]).units.table.count
    worth = np.random.default_rng(0).random(count)
    train_run(config, tmp_path / "out", importance=worth)
    net = load_checkpoint(tmp_path / "out").net
    kept = net.switches[0].numpy() > 0
    for members in net.units.table.widths:
        inside = np.isin(members, np.flatnonzero(kept))
        assert worth[members][inside].min() > worth[members][~inside].max()
    with pytest.raises(
        CheckpointError, match="belongs to a run with another importance of the units"
    ):
        train_run(config, tmp_path / "out", resume=True)
    train_run(config, tmp_path / "out", resume=True, importance=worth)


def test_a_greedy_ramp_is_not_random() -> None:
    with pytest.raises(ConfigError, match=r"ranking is .random. and recipe is .greedy."):
        TrainConfig(recipe="greedy", ranking="random")


def test_each_domain_can_be_cut_greedily(tmp_path: Path) -> None:
    trained(tmp_path, recipe='"greedy"', cut='"domains"', ranking='"importance-per-cost"')
    net = load_checkpoint(tmp_path / "out").net
    table = net.units.table
    costs = [table.params(row.numpy() > 0) / table.params(row.numpy() > -1) for row in net.switches]
    assert max(costs) <= 0.5
    assert (net.switches[0] != net.switches[1]).any()


def test_a_ramp_can_start_from_importance_per_cost() -> None:
    own = make_recipe(
        TrainConfig(ranking="importance-per-cost"),
        lambda kept: kept.mean(),
        lambda worth, used, share=None: np.ones(4, bool),
        beta=0.5,
        domains=2,
        units=4,
        steps_per_epoch=1,
    )
    own.start(torch.tensor([[0.1, 0.4, 0.3, 0.2]] * 2))
    assert own.learner.scores.tolist() == [[0.25, 1.0, 0.75, 0.5]] * 2
    assert own.learner.square[0, 1] == pytest.approx(0.16)


@pytest.fixture(scope="module", params=["once", "greedy"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run file; its run, never stopped, is in `out` beside it."""
    folder = tmp_path_factory.mktemp(request.param)
    trained(folder, recipe=f'"{request.param}"', ranking='"importance-per-cost"')
    return folder / "run.toml"


# `folder/test_resume.py` stops a run in all of its epochs.
@pytest.mark.parametrize(
    "epochs", [1, *(pytest.param(n, marks=pytest.mark.thorough) for n in (2, 3))]
)
def test_a_stopped_run_goes_on_as_if_it_never_was(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs: int
) -> None:

    def stopped(path: Path, training: Training, facts: dict[str, Any]) -> None:
        save_snapshot(path, training, facts)
        if training.epoch == epochs:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("prunion.trainer.run.folder.states.save_snapshot", stopped)
        with pytest.raises(KeyboardInterrupt):
            train_run(load_config(whole), tmp_path / "out")
    train_run(load_config(whole), tmp_path / "out", resume=True)
    first, second = (
        sha256_file(folder / "out/checkpoint/model.safetensors")
        for folder in (whole.parent, tmp_path)
    )
    assert first == second


@pytest.mark.parametrize("rounds", [100, 30])
@pytest.mark.parametrize("cut", ["union", "domains"])
def test_the_last_cut_asks_every_domain_whosever_turn_it_was(cut: str, rounds: int) -> None:
    """A domain whose turn was over had nothing to say in it, and lost what it needs."""
    units = 100

    def select(
        worth: np.ndarray, used: np.ndarray | None, share: float | None = None
    ) -> np.ndarray:
        allowed = np.where(True if used is None else used, worth, -1.0)
        kept = np.zeros(units, bool)
        kept[np.argsort(-allowed, kind="stable")[: int(max(0.5, share or 0.5) * units)]] = True
        return kept if used is None else kept & used

    train = TrainConfig(recipe="greedy", order="epoch", warmup=0, ramp=1, settle=1, cut=cut)  # type: ignore[arg-type]
    recipe = make_recipe(
        train,
        lambda kept: kept.sum() / units,
        select,
        beta=0.5,
        domains=2,
        units=units,
        steps_per_epoch=2 * rounds,
    )
    needs = torch.full((2, units), 0.01)
    needs[0, 50:], needs[1, :50] = 2, 1
    recipe.start(needs.clone())
    for step in range(2 * rounds):
        recipe.learn(step, torch.ones_like(needs), needs, [int(step >= rounds)])
    kept = recipe.cut()
    assert kept[0, 50:].all()
    if cut == "domains":
        assert kept[1, :50].all()
