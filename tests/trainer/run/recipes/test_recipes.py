"""Every recipe, loss and precision through a whole run: the budget holds at its end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from prunion.exporter.bundle import export_bundle
from prunion.runtime.errors import ConfigError
from prunion.trainer.config import TrainConfig, load_config
from prunion.trainer.learning import Training
from prunion.trainer.learning.norms import estimate_norms
from prunion.trainer.network import DomainNet, load_checkpoint
from prunion.trainer.pruning import SwitchLearner
from prunion.trainer.run import train_run
from tests.support.tiny_run import tiny_run
from tests.trainer.run.recipes.trained import recipe, trained

CHOICES: dict[str, dict[str, object]] = {
    "intersection": {"sharing": '"intersection"'},
    "jaccard fixed": {"sharing": '"jaccard"', "sharing_weight": 0.25},
    "BA2": {"sharing": '"none"'},
    "paper": {"recipe": '"paper"', "order": '"epoch"'},
    "once": {"recipe": '"once"', "ranking": '"importance-per-cost"'},
    "once without ramp or settling": {"recipe": '"once"', "ramp": 0, "settle": 0},
    "once without warm-up": {"recipe": '"once"', "warmup": 0},
    "greedy": {"recipe": '"greedy"', "ranking": '"importance-per-cost"'},
    "greedy without a ramp": {"recipe": '"greedy"', "ramp": 0},
    "greedy, one domain a step": {"recipe": '"greedy"', "order": '"epoch"'},
    "paper BA2": {"recipe": '"paper"', "sharing": '"none"', "settle": 0},
    "union and domains": {"domain_budget": "true"},
    "bf16": {"precision": '"bf16"'},
    "one domain a step": {"order": '"epoch"'},
    "round-robin": {"order": '"round-robin"', "recipe": '"paper"', "settle": 0},
}

# Of those that differ in one thing from another.
SLOW = (
    "jaccard fixed",
    "once",
    "once without warm-up",
    "greedy",
    "greedy without a ramp",
    "paper BA2",
    "one domain a step",
)


THOROUGH = ("intersection", "union and domains", "greedy, one domain a step")


def marks(name: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.slow] * (name in SLOW) + [pytest.mark.thorough] * (name in THOROUGH)


@pytest.mark.parametrize("name", [pytest.param(n, marks=marks(n)) for n in CHOICES])
def test_the_budget_is_met_after_rounding(name: str, tmp_path: Path) -> None:
    result = trained(tmp_path, **{"ramp": 1, **CHOICES[name]})
    assert result.budget["met"]
    assert result.budget["value"] <= 0.5
    units = load_checkpoint(tmp_path / "out").net
    alive = (units.switches > 0).any(0).numpy()
    for members in units.units.table.widths:
        width = alive[members].sum()
        assert width > 0
        assert width % 8 == 0


def test_each_domain_alone_can_be_held_to_the_budget(tmp_path: Path) -> None:
    """As BA² does: the union of domains that do not share costs more, and the bundle says so."""
    result = trained(tmp_path, sharing='"none"', cut='"domains"', ranking='"random"')
    net = load_checkpoint(tmp_path / "out").net
    table = net.units.table
    costs = [table.params(row.numpy() > 0) / table.params(row.numpy() > -1) for row in net.switches]
    assert max(costs) <= 0.5 < result.budget["value"]
    assert not result.budget["met"]
    manifest = export_bundle(tmp_path / "out", tmp_path / "bundle")
    assert manifest["budget"]["met"] is False
    assert manifest["budget"]["value"] == pytest.approx(result.budget["value"])


def test_who_settles_with_the_union(tmp_path: Path) -> None:
    """The same union either way; what a domain chose for itself stays known."""
    switches, results = {}, {}
    for who in ("union", "own"):
        folder = tmp_path / who
        folder.mkdir()
        results[who] = trained(folder, settle_with=f'"{who}"')
        switches[who] = load_checkpoint(folder / "out").net.switches > 0
    kept = switches["own"].any(0)
    assert (switches["union"] == kept).all()
    assert not (switches["own"] == kept).all()
    assert results["union"].params == results["own"].params
    assert results["union"].shared == results["own"].shared < 1
    assert results["union"].sharing_matrix == results["own"].sharing_matrix


def test_sharing_counts_what_was_chosen_not_what_fills_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[Training] = []
    start = Training.__init__

    def kept(self: Training, *args: object, **options: object) -> None:
        start(self, *args, **options)  # type: ignore[arg-type]
        runs.append(self)

    monkeypatch.setattr(Training, "__init__", kept)
    monkeypatch.setattr("prunion.trainer.pruning.pace.LEAST_UPDATES", 1)  # few updates overshoot
    result = trained(tmp_path)
    scores, union = runs[0].learner.scores, runs[0].net.switches.amax(0) > 0
    assert ((scores > 0).sum(0)[union] == 0).any()
    assert result.shared == pytest.approx(float((scores > 0).all(0)[union].float().mean()))


@pytest.mark.parametrize("order", ["batch", "epoch"])
def test_one_domain_a_step_moves_its_own_switches_and_each_gets_its_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    """Every eighth step of two domains' turns is always the same domain's."""
    moved = torch.zeros(2)
    update = SwitchLearner.update

    def seen(
        self: SwitchLearner, gradient: torch.Tensor, charge: torch.Tensor, domains: list[int]
    ) -> None:
        before = self.scores.clone()
        update(self, gradient, charge, domains)
        assert (gradient != 0).any(1).nonzero().flatten().tolist() == domains
        moved.add_((self.scores != before).any(1))

    monkeypatch.setattr("prunion.trainer.pruning.pace.LEAST_UPDATES", 1)
    monkeypatch.setattr(SwitchLearner, "update", seen)
    every = {"switch_every": 2} if order == "batch" else {}  # in epochs of one domain every step
    trained(tmp_path, order=f'"{order}"', ramp=4, **every)
    assert moved[0] == moved[1] > 1


@pytest.mark.parametrize(
    "order",
    [
        "joint",
        "epoch",
        *(pytest.param(x, marks=pytest.mark.thorough) for x in ("batch", "round-robin")),
    ],
)
def test_batchnorm_is_estimated_again_for_the_final_switches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    """A domain's statistics were those of its last turn, before others moved its switches."""
    runs: list[Training] = []
    start = Training.__init__

    def kept(self: Training, *args: object, **options: object) -> None:
        start(self, *args, **options)  # type: ignore[arg-type]
        runs.append(self)

    monkeypatch.setattr(Training, "__init__", kept)
    trained(tmp_path, recipe='"paper"', order=f'"{order}"', settle=0)
    norms = runs[0].net.norms
    before = {name: norm.running_var.clone() for name, norm in norms.items()}
    for norm in norms.values():
        norm.running_mean.fill_(7.0)
        norm.running_var.fill_(7.0)
    estimate_norms(runs[0].net, runs[0].batches.epoch(runs[0].epoch, joint=True))
    for name, norm in norms.items():
        torch.testing.assert_close(norm.running_var, before[name])
        assert norm.momentum == 0.1


def test_a_trunk_that_never_learns_cannot_start_late() -> None:
    with pytest.raises(ConfigError, match=r"trunk is .frozen., which never learns"):
        TrainConfig(trunk="frozen", trunk_from="settle")


def test_who_settles_with_the_union_by_default() -> None:
    assert recipe().opens
    assert not recipe(settle=0).opens
    assert not recipe(recipe="paper").opens
    assert not recipe(cut="domains").opens
    assert recipe(recipe="paper", settle_with="union").opens
    with pytest.raises(ConfigError, match=r"settle_with is .union. and cut is .domains."):
        TrainConfig(cut="domains", settle_with="union")


def test_a_budget_of_switches_is_met(tmp_path: Path) -> None:
    run_file = tiny_run(tmp_path)
    text = run_file.read_text("utf-8").replace('kind = "params"', 'kind = "switches"')
    run_file.write_text(text, "utf-8")
    result = train_run(load_config(run_file), tmp_path / "out")
    loaded = load_checkpoint(tmp_path / "out").net
    share = float((loaded.switches > 0).any(0).float().mean())
    assert result.budget["value"] == pytest.approx(share)
    assert share <= 0.5
    data = result.to_json()["data"]
    assert data["cold"]["classes"] == 3
    assert data["cold"]["images"] == {"train": 24, "test": 24}
    assert data["cold"]["skipped"] == {"train": {}, "test": {}}


def test_domains_are_budgeted_where_the_union_does_not_do_it() -> None:
    assert not recipe().pressure.holds_domains
    assert recipe(recipe="paper").pressure.holds_domains
    assert recipe(sharing="none").pressure.holds_domains
    assert recipe(sharing="jaccard", recipe="paper").pressure.holds_domains
    assert not recipe(sharing="jaccard").pressure.holds_domains
    assert recipe(sharing="jaccard").pressure.holds_network
    assert not recipe(sharing="none", domain_budget=False).pressure.holds_domains
    assert recipe(domain_budget=True).pressure.holds_domains


def test_bf16_learns_what_fp32_learns(tmp_path: Path) -> None:
    """The losses of the first steps agree to bfloat16's precision, and are not the same."""
    losses = {}
    for precision in ("fp32", "bf16"):
        folder = tmp_path / precision
        folder.mkdir()
        trained(folder, precision=f'"{precision}"', ramp=0, settle=0)
        lines = [json.loads(x) for x in (folder / "out/metrics.jsonl").read_text().splitlines()]
        losses[precision] = [x["loss/warm"] for x in lines if "cost" in x][:3]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.05)
    assert losses["bf16"] != losses["fp32"]


@pytest.mark.slow
def test_a_compiled_trunk_learns_the_same(tmp_path: Path) -> None:
    losses = []
    for compiled in ("false", "true"):
        folder = tmp_path / compiled
        folder.mkdir()
        trained(folder, compile=compiled, warmup=1, ramp=1, settle=0)
        lines = [json.loads(x) for x in (folder / "out/metrics.jsonl").read_text().splitlines()]
        losses.append([x["loss/warm"] for x in lines if "cost" in x])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


@pytest.mark.parametrize(
    "keys",
    [
        {"accumulate": 2, "batch_size": 16},
        pytest.param({"order": '"batch"'}, marks=pytest.mark.thorough),
    ],
)
def test_ranking_holds_no_more_images_than_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any]
) -> None:
    """What fits through warm-up must not run out of memory after it."""
    features, seen = DomainNet.features, []

    def counted(self: DomainNet, images: torch.Tensor, *args: Any, **more: Any) -> torch.Tensor:
        if self.training and torch.is_grad_enabled():
            seen.append(len(images))
        return features(self, images, *args, **more)

    monkeypatch.setattr(DomainNet, "features", counted)
    trained(tmp_path, warmup=1, ramp=0, settle=0, **keys)
    steps = max(seen)
    seen.clear()
    trained(tmp_path / "ranked", warmup=1, ramp=1, settle=0, **keys)
    assert max(seen) == steps
