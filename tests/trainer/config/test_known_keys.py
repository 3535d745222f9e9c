"""Keys of `[train]` that would say nothing are refused; checkpoints that hold some still load."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from prunion.runtime.errors import ConfigError
from prunion.trainer.config import (
    METHODS,
    RunConfig,
    TrainConfig,
    changed_keys,
    drop_ignored,
    load_config,
    todays_config,
)
from prunion.trainer.config.file import toml_text
from prunion.trainer.config.known_keys import KNOWN, ignored

SLICES = {"granularity": "slice"}
# What says nothing beside the rest, why, and whom it is for.
NOTHING: list[tuple[dict[str, Any], str, dict[str, Any], str]] = [
    ({"method": "piggyback"}, "method is .piggyback.", {"sharing": "jaccard"}, ".bap. or .ba2."),
    ({"method": "norms"}, "method is .norms.", {"sharing_weight": 0.25}, "it is for .bap.;"),
    ({"method": "ba2"}, "method is .ba2.", {"sharing_weight": 0.25}, "it is for .bap.;"),
    ({"method": "lora"}, "method is .lora.", {"cut": "domains"}, ".bap. or .ba2."),
    ({"method": "taps"}, "method is .taps.", {"settle_with": "union"}, "granularity = .channel."),
    ({"method": "packnet"}, "method is .packnet.", {"ranking": "random"}, "granularity = .channel"),
    ({"method": "affine"}, "method is .affine.", {"switch_every": 2}, "granularity = .channel."),
    ({"method": "series"}, "method is .series.", {"domain_budget": False}, ".bap. or .ba2."),
    ({"method": "finetune"}, "method is .finetune.", {"own_epochs": 3}, ".bap. or .ba2."),
    (SLICES, "granularity is .slice.", {"settle_with": "union"}, "granularity = .channel."),
    (SLICES, "granularity is .slice.", {"ranking": "random"}, "granularity = .channel."),
    (SLICES, "granularity is .slice.", {"switch_travel": 5.0}, "granularity = .channel."),
    ({"recipe": "paper"}, "recipe is .paper.", {"ranking": "random"}, ".once. or .greedy."),
    ({"recipe": "paper"}, "recipe is .paper.", {"switch_every": 2}, "recipe .prunion."),
    ({"recipe": "once"}, "recipe is .once.", {"ramp_shape": "linear"}, ".prunion. or .greedy."),
    ({"recipe": "once"}, "recipe is .once.", {"sharing": "jaccard"}, ".prunion. or .paper."),
    ({"recipe": "greedy"}, "recipe is .greedy.", {"settle_with": "own"}, ".prunion. or .paper."),
    ({"sharing": "none"}, "sharing is .none.", {"sharing_weight": 2}, "a sharing loss"),
    ({"trunk": "frozen"}, "trunk is .frozen.", {"trunk_lr": 1.0}, "a trunk that is tuned"),
    (
        {"trunk": "frozen"},
        "trunk is .frozen.",
        {"trunk_optimiser": "adamw"},
        "a trunk that is tuned",
    ),
    ({"method": "norms"}, "method is .norms.", {"trunk_lr": 1.0}, "a trunk that is tuned"),
    ({"settle": 0}, "settle is 0", {"average": 1.0}, "the epochs of settling"),
    ({"recipe": "once", "ramp": 0, "settle": 0}, "settle is 0", {"average": 2.0}, "settling"),
    ({"ramp": 0}, "ramp is 0", {"switch_every": 2}, "the epochs of a ramp"),
    ({"ramp": 0}, "ramp is 0", {"switch_travel": 5.0}, "the epochs of a ramp"),
    ({"ramp": 0, "method": "taps"}, "ramp is 0", {"taps_lambda": 1.0}, "the epochs of a ramp"),
    ({"order": "epoch"}, "order is .epoch.", {"switch_every": 2}, ".joint. or .batch."),
    ({"order": "round-robin"}, "order is .round-robin.", {"switch_every": 2}, ".joint. or .ba"),
    ({"ramp": 0, "recipe": "greedy"}, "ramp is 0", {"ramp_shape": "linear"}, "epochs of a ramp"),
    (
        {"recipe": "paper", "order": "round-robin"},
        "order is .round-robin.",
        {"balance": 1.0},
        "it is for others",
    ),
    ({"trunk": "tuned"}, "teacher is not given", {"distillation": 0.9}, "taught by another"),
]


def run_of(train: dict[str, Any]) -> dict[str, Any]:
    domain = {"train": ["a"], "test": ["b"]}
    own = {"backbone": {"name": "resnet18"}, "budget": {"limit": 0.5}, "domains": {"a": domain}}
    return {**own, "train": train}


@pytest.mark.parametrize(
    ("train", "kind", "ranking"),
    [
        ({}, "params", "importance"),
        ({}, "macs", "importance"),
        ({"recipe": "once"}, "params", "importance"),
        ({"recipe": "once"}, "bytes", "importance"),
        ({"recipe": "once"}, "macs", "importance-per-cost"),
        ({"recipe": "greedy"}, "macs", "importance-per-cost"),
        ({"recipe": "once", "ranking": "importance"}, "macs", "importance"),
        ({"recipe": "once", "ranking": "fisher-per-cost"}, "params", "fisher-per-cost"),
        ({"recipe": "paper"}, "macs", "auto"),
        (SLICES, "params", "auto"),
        ({"method": "norms"}, "macs", "auto"),
    ],
)
def test_a_ranking_that_is_not_given_is_the_budgets(
    train: dict[str, Any], kind: str, ranking: str
) -> None:
    config = RunConfig.from_json({**run_of(train), "budget": {"limit": 0.5, "kind": kind}})
    assert config.train.ranking == ranking
    assert RunConfig.from_json(config.to_json()) == config


def test_a_ranking_that_a_run_decided_is_no_obstacle_to_another_recipe() -> None:
    config = RunConfig.from_json(run_of({}))
    for change in ({"recipe": "paper"}, {"method": "norms"}, SLICES):
        changed = replace(config, train=replace(config.train, **change))  # type: ignore[arg-type]
        stored = {**config.to_json(), "train": {**config.to_json()["train"], **change}}
        assert RunConfig.from_json(stored) == changed


def test_a_run_of_before_that_ranked_by_importance_goes_on() -> None:
    """It stored so, whatever it was."""
    for train in ({}, {"recipe": "once"}, {"recipe": "paper"}, SLICES, {"method": "norms"}):
        now = RunConfig.from_json(run_of(train)).to_json()
        before = {**now, "train": {**now["train"], "ranking": "importance"}}
        assert not list(changed_keys(todays_config(before), now))


@pytest.mark.parametrize(("beside", "why", "nothing", "whom"), NOTHING)
def test_what_says_nothing_is_refused_and_says_whom_it_is_for(
    beside: dict[str, Any], why: str, nothing: dict[str, Any], whom: str
) -> None:
    (key,) = nothing
    TrainConfig(**beside)
    with pytest.raises(ConfigError, match=rf"^\[train\] {key} is .*, but {why}.*{whom}") as told:
        TrainConfig(**beside, **nothing)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(("beside", "why", "nothing", "whom"), NOTHING)
def test_a_checkpoint_of_before_still_loads_without_it(
    beside: dict[str, Any], why: str, nothing: dict[str, Any], whom: str
) -> None:
    run = run_of({**beside, **nothing})
    with pytest.raises(ConfigError):
        RunConfig.from_json(run)
    config = RunConfig.from_checkpoint(run)
    assert config.train == RunConfig.from_checkpoint(run_of(beside)).train
    assert RunConfig.from_json(drop_ignored(run)).train == config.train
    assert RunConfig.from_json(config.to_json()).train == config.train
    assert run["train"] == {**beside, **nothing}


@pytest.mark.parametrize("recipe", ["prunion", "once", "greedy", "paper"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("granularity", ["channel", "slice"])
def test_what_a_method_sets_itself_is_read_back(method: str, recipe: str, granularity: str) -> None:
    try:
        train = TrainConfig(method=method, recipe=recipe, granularity=granularity)  # type: ignore[arg-type]
    except ConfigError:
        return
    assert not ignored(vars(train))
    run = RunConfig.from_json(run_of({}))
    of_run = RunConfig.from_json(run_of(vars(train)))
    value = {**run.to_json(), "train": of_run.to_json()["train"]}
    again = RunConfig.from_json(value).train
    assert again == of_run.train == RunConfig.from_checkpoint(value).train
    assert replace(again, ranking="auto") == train


@pytest.mark.parametrize(
    ("given", "key", "instead"),
    [
        ({"method": "svd", "trunk": "tuned"}, "trunk", "frozen"),
        ({"method": "ba2", "sharing": "union"}, "sharing", "none"),
        ({"method": "ba2", "cut": "union"}, "cut", "domains"),
        ({"method": "packnet", "order": "joint"}, "order", "tasks"),
        ({"granularity": "slice", "trunk": "tuned"}, "trunk", "frozen"),
    ],
)
def test_a_default_that_is_said_and_that_the_method_replaces_is_refused(
    tmp_path: Path, given: dict[str, str], key: str, instead: str
) -> None:
    """It ran with the other value without a word. What the method sets may be said, too."""
    path = tmp_path / "run.toml"
    path.write_text("\n".join(f"{x} = {toml_text(v)}" for x, v in run_of({}).items()), "utf-8")
    asked = [f"train.{x}={value}" for x, value in given.items()]
    with pytest.raises(
        ConfigError, match=rf"\[train\] {key} is .*makes it .{instead}.: leave"
    ) as told:
        load_config(path, asked)
    assert vars(load_config(path, [*asked[:-1], f"train.{key}={instead}"]).train)[key] == instead
    assert ('but granularity is "slice", which' in str(told.value)) == ("granularity" in given)
    load_config(path, asked, begun=True)  # an earlier prunion took it, and its run goes on


def test_passes_are_balanced_where_channels_are_ranked_on_joint_steps() -> None:
    TrainConfig(order="round-robin", balance=1.0)
    TrainConfig(order="round-robin", balance=1.0, recipe="paper", head_start="fitted")


def test_a_match_without_a_file_of_weights_is_refused() -> None:
    run = run_of({})
    run["backbone"] = {"name": "resnet18", "match": "order"}
    with pytest.raises(ConfigError, match=r'match is "order".* weights is "default": give a'):
        RunConfig.from_json(run)
    assert RunConfig.from_checkpoint(run).backbone.match == "name"


def test_the_table_has_every_default() -> None:
    defaults = {field.name: field.default for field in fields(TrainConfig)}
    assert {key: known.default for key, known in KNOWN.items()} == {k: defaults[k] for k in KNOWN}


def test_domains_that_are_thinned_learn_switches_in_any_recipe() -> None:
    train = {"recipe": "once", "own_epochs": 3, "switch_every": 2, "ramp_shape": "linear"}
    run = {**run_of(train), "budget": {"limit": 0.5, "own": 0.7}}
    config = RunConfig.from_json(run)
    assert (config.train.switch_every, config.train.ramp_shape) == (2, "linear")
    whole = config.train.without_thinning()  # as `--baseline` has it
    assert (whole.switch_every, whole.own_epochs) == (8, 0)
    with pytest.raises(ConfigError, match=r"own_epochs is 3.*give it, or remove own_epochs"):
        RunConfig.from_json({**run, "budget": {"limit": 0.5}})


@pytest.mark.parametrize(
    "train",
    [{"method": 3}, {"method": ["bap"]}, {"recipe": []}, {"sharing": {}}, {"trunk_lr": "fast"}, []],
)
def test_a_damaged_file_is_told_as_ever(train: Any) -> None:
    with pytest.raises(ConfigError):
        RunConfig.from_checkpoint(run_of(train))
