"""What cannot be thinned, or may not do, is told before the first step."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from prunion.runtime.errors import BudgetError, ConfigError
from prunion.trainer.config import BudgetConfig, BudgetKind, TrainConfig, load_config
from prunion.trainer.config.checks import RecipeName
from prunion.trainer.cost import least_cost, make_budget, make_pricer
from prunion.trainer.learning.own.budget import (
    check_reachable,
    own_doubt,
    thinned_train,
)
from prunion.trainer.network import build_network, load_checkpoint
from prunion.trainer.run import check_run, train_run
from tests.trainer.run.own_budgets.thinned import thin_run


@pytest.fixture
def planned(tmp_path: Path) -> Path:
    thin_run(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "limit", "said"),
    [
        ({"own_epochs": 1}, 0.5, "2 or more"),
        ({"own_epochs": 0}, 1.0, "its limit cuts nothing"),
        ({"own_epochs": 0, "recipe": "greedy", "switch_every": 8}, 0.5, "greedy"),
        ({"own_epochs": 0, "recipe": "once", "switch_every": 8}, 0.5, "once.*learns no switches"),
        (
            {"own_epochs": 0, "recipe": "paper", "switch_every": 8, "settle_with": "union"},
            0.5,
            "paper.*scores rank none: set .prunion.",
        ),
    ],
)
def test_what_cannot_be_thinned_is_told_before_the_first_step(
    changes: dict[str, Any], limit: float, said: str, planned: Path, tmp_path: Path
) -> None:
    config = load_config(planned / "run.toml")
    train = replace(config.train, **changes)
    config = replace(config, train=train, budget=replace(config.budget, limit=limit))
    with pytest.raises(ConfigError, match=said):
        train_run(config, tmp_path / "out")
    alone = replace(config, train=replace(train, own_epochs=0), domains=config.domains[:1])
    with pytest.raises(ConfigError, match=r"there is one domain|2 or more"):
        train_run(alone, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_share_that_may_not_do_is_doubted_before_the_first_step(planned: Path) -> None:
    config = load_config(planned / "run.toml")
    config = replace(config, train=replace(config.train, own_epochs=0))
    net = build_network(config.backbone, config.input.size, [2, 3])
    assert not own_doubt(config, net)
    low = replace(config, budget=replace(config.budget, own=0.2))
    assert "own is 0.2, and 2 domains that share every layer" in own_doubt(low, net)
    later = replace(low, train=replace(low.train, own_epochs=3))
    assert not own_doubt(later, net), "what no domain keeps goes"


def test_a_check_counts_the_epochs_of_thinning(planned: Path) -> None:
    found = check_run(load_config(planned / "run.toml"))
    assert (found.epochs, found.steps) == (7, 21)


@pytest.mark.parametrize(
    ("train", "advice"),
    [
        ({"settle_with": "own"}, 'set settle_with = "union"'),
        ({"cut": "domains"}, 'set cut = "union"'),
        ({"settle": 0}, "give settle epochs"),
        ({"recipe": "paper"}, 'set settle_with = "union"'),
        ({"method": "ba2"}, 'method is "ba2", which cuts each alone: remove it'),
        ({"granularity": "slice", "own_epochs": 0, "switch_every": 8}, "removes none: remove it"),
    ],
)
def test_domains_that_do_not_settle_with_the_union_are_refused(
    planned: Path, train: dict[str, Any], advice: str
) -> None:
    """What a domain had done without would have come back, untrained. The advice helps."""
    config = load_config(planned / "run.toml")
    with pytest.raises(ConfigError, match=rf"\[budget\] own is 0\.6, .*{advice}"):
        replace(config, train=replace(config.train, **train))


@pytest.mark.parametrize("own_epochs", [0, 3])
@pytest.mark.parametrize(("limit", "kind"), [(0.5, "params"), (0.5, "macs")])
def test_what_no_domain_can_do_with_is_refused_before_the_first_step(
    planned: Path, tmp_path: Path, own_epochs: int, limit: float, kind: BudgetKind
) -> None:
    config = load_config(planned / "run.toml")
    budget = replace(config.budget, limit=limit, kind=kind, round_to=8, own=0.01)
    config = replace(config, budget=budget, train=replace(config.train, own_epochs=own_epochs))
    told = r"\[budget\] own is 0\.01: .* needs [\d,]+: set own = (0\.\d+) or more"
    with pytest.raises(BudgetError, match=told) as refused:
        train_run(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    least = float(str(refused.value).split("set own = ")[1].split()[0])
    net = build_network(config.backbone, config.input.size, [2, 3])
    priced = make_budget(config.budget, make_pricer(config.budget, net))
    for own, reachable in ((least, True), (least - 2e-4, False)):
        asked = replace(config, budget=replace(budget, own=own))
        with nullcontext() if reachable else pytest.raises(BudgetError):
            check_reachable(asked, net, priced)


@pytest.mark.parametrize("own_epochs", [0, 3])
def test_a_union_too_narrow_to_be_thinned_is_told_and_kept(
    planned: Path, tmp_path: Path, own_epochs: int, caplog: pytest.LogCaptureFixture
) -> None:
    """It is known only after the ramp: a run of hours is finished, and says what it has not met."""
    config = load_config(planned / "run.toml")
    net = build_network(config.backbone, config.input.size, [2, 3])
    narrow = least_cost(BudgetConfig(0.5), make_pricer(BudgetConfig(0.5), net))
    train = replace(config.train, own_epochs=own_epochs)
    config = replace(config, budget=BudgetConfig(narrow + 1, own=0.3), train=train)
    result = train_run(config, tmp_path / "out")
    assert result.own is not None and not result.own["met"]
    assert result.own["asked"] == 0.3 and max(result.own["macs"].values()) > 0.3
    assert load_checkpoint(tmp_path / "out").net.switches.any(1).all()
    if not own_epochs:
        assert "[budget] own is 0.3, with which the 2 domains were not found" in caplog.text


@pytest.mark.parametrize("own", [0, 1.5, "half"])
def test_a_share_is_asked_for(own: object) -> None:
    with pytest.raises(ConfigError, match="own"):
        BudgetConfig(0.5, own=own)  # type: ignore[arg-type]


def test_whatever_a_run_says_can_be_thinned_in_the_end() -> None:
    """A key that the last epochs do not know ended the run after all the others."""
    others = {
        "sharing": "jaccard", "sharing_weight": 0.5, "domain_budget": False, "settle_with": "union",
        "switch_lr": 5e-5, "drops": (1,), "average": 0.5, "trunk": "frozen", "trunk_lr": 1e-3,
        "trunk_optimiser": "adamw", "trunk_from": "settle", "lr": 0.1, "head_lr": 0.1,
        "head_optimiser": "sgd", "head_start": "random", "cut": "domains", "ranking": "random",
        "switch_every": 2, "switch_travel": 1.0, "method": "ba2", "adapter_rank": 2,
        "order": "batch", "accumulate": 2, "small_set_decay": 0.1, "label_smoothing": 0.1,
    }  # fmt: skip
    tried = 0
    for recipe in get_args(RecipeName):
        for key, value in others.items():
            try:
                train = TrainConfig(recipe=recipe, own_epochs=3, **{key: value})  # type: ignore[arg-type]
            except ConfigError:  # refused from the start
                continue
            thinned = thinned_train(train)
            assert (thinned.recipe, thinned.trunk, thinned.epochs) == ("prunion", "frozen", 3)
            tried += 1
    assert tried > 70
