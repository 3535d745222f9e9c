"""How a run was pruned is read of its folder; what is not there is not known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from prunion.trainer.config import RunConfig
from prunion.trainer.config.checks import RecipeName
from prunion.trainer.config.method import METHODS, Method
from prunion.trainer.score.pruning import Pruning, idle_keys, read_pruning
from prunion.trainer.score.verdict import read_verdict
from tests.trainer.score.written_run import written_run


@pytest.mark.parametrize("limit", [0.25, 1.0, "25%", "100%", 500, 5000])
@pytest.mark.parametrize("method", get_args(Method))
def test_only_what_cuts_channels_has_a_verdict_on_pruning(
    method: Method, limit: float | str, tmp_path: Path
) -> None:
    whole = METHODS[method].prunes is False or limit in (1.0, "100%", 5000)
    kept = {"value": 1.0 if whole else 0.25, "asked": limit, "kind": "params", "backbone": 2000}
    if isinstance(limit, int):
        kept["value"] *= 2000
    folder = written_run(
        tmp_path,
        {"limit": limit},
        2000,
        train={"method": method},
        result={"budget": kept, "uncut": 1.0},
    )
    pruning, found = read_pruning(folder), read_verdict(folder, folder)
    assert pruning is not None and found is not None
    assert pruning.prunes is not whole and (found.loss is None) is whole
    if whole:
        assert not found.lines
    told = any("the last cut took the rest" in line for line in found.lines)
    assert told is (method == "bap" and not whole)


@pytest.mark.parametrize("cut", ["union", "domains"])
@pytest.mark.parametrize("ramp", [0, 2])
@pytest.mark.parametrize("recipe", get_args(RecipeName))
def test_what_led_to_the_last_cut(recipe: str, ramp: int, cut: str, tmp_path: Path) -> None:
    train = {"recipe": recipe, "ramp": ramp, "warmup": 0, "cut": cut}
    folder = written_run(tmp_path, {"limit": 0.25}, train=train)
    found = read_verdict(folder)
    assert found is not None
    told = any("the last cut took the rest" in line for line in found.lines)
    assert told is (recipe != "once" and ramp > 0 and cut == "union")
    pruning = read_pruning(folder)
    assert pruning is not None and (pruning.lead == "the ramp") is (recipe == "greedy" and ramp > 0)


@pytest.mark.parametrize(
    ("train", "pushed"),
    [
        ({"sharing_weight": 0.0}, False),
        ({"sharing_weight": 0.0, "domain_budget": True}, True),
        ({"sharing_weight": 0.0, "sharing": "jaccard"}, True),
        ({"sharing_weight": 0.0, "recipe": "paper"}, True),
        ({"sharing_weight": 0.0, "recipe": "paper", "domain_budget": False}, False),
        ({"sharing": "none"}, True),
        ({"sharing": "none", "domain_budget": False}, False),
    ],
)
def test_no_longer_ramp_is_advised_where_nothing_charges(
    train: dict[str, Any], pushed: bool, tmp_path: Path
) -> None:
    folder = written_run(tmp_path, {"limit": 0.25}, train={"ramp": 2, "warmup": 0, **train})
    found = read_verdict(folder)
    assert found is not None
    assert any("try a longer" in line for line in found.lines) is pushed


def test_each_domains_own_budget_is_read(tmp_path: Path) -> None:
    own = {"macs": {"a": 0.55, "b": 0.5}, "accuracy_with_union": {"a": 0.9}}
    budget = {"limit": 1.0, "own": 0.6}
    folder = written_run(tmp_path, budget, train={"own_epochs": 3}, result={"own": own})
    assert read_pruning(folder) == Pruning(True, "learning", True, 0.25, 0.6, 0.55)


@pytest.mark.parametrize("earlier", [True, False])
@pytest.mark.parametrize("ramp", [0, 2])
def test_slices_are_held_by_the_budget(ramp: int, earlier: bool, tmp_path: Path) -> None:
    """An earlier prunion told what the graph costs, which is not how much of the slices is kept."""
    train = {"granularity": "slice", "warmup": 0, "ramp": ramp}
    kept = {"value": 0.25, "asked": 0.25, "kind": "params", "backbone": 2000}
    result = {"budget": kept if earlier else {**kept, "slices": True}, "uncut": 0.5}
    folder = written_run(tmp_path, {"limit": 0.25}, train=train, result=result)
    pruning = read_pruning(folder)
    lead = "learning" if ramp else ""
    assert pruning == Pruning(True, lead, True, None if earlier else 0.25)
    told = "the last cut took the rest" in pruning.cut_line(0.25, 0.5)
    assert told is (ramp > 0 and not earlier)


@pytest.mark.parametrize("lacks", ["config", "checkpoint", "key", "value"])
def test_an_older_folder_is_read_and_what_it_lacks_is_not_known(lacks: str, tmp_path: Path) -> None:
    folder = written_run(tmp_path, {"limit": 0.25})
    path = folder / "checkpoint" / "checkpoint.json"
    meta: dict[str, Any] = json.loads(path.read_text("utf-8"))
    if lacks == "config":
        del meta["config"]
    elif lacks == "key":
        meta["config"]["of_another_version"] = 1
    path.write_text(json.dumps(meta), "utf-8")
    if lacks == "checkpoint":
        path.unlink()
    if lacks == "value":
        record = json.loads((folder / "record.json").read_text("utf-8"))
        del record["result"]["budget"]["value"]
        (folder / "record.json").write_text(json.dumps(record), "utf-8")
    assert read_pruning(folder) is None
    found = read_verdict(folder)
    assert found is not None and "last cut" not in "".join(found.lines)
    assert found.lines[0].startswith("what pruning cost is not known")


@pytest.mark.parametrize(
    ("budget", "train", "idle"),
    [
        ({"limit": 1}, {"ranking": "random", "switch_every": 2}, ["ranking", "switch_every"]),
        ({"limit": 1.0, "kind": "macs"}, {"recipe": "once", "cut": "domains"}, ["cut"]),
        ({"limit": 1}, {"sharing": "none", "lr": 0.1}, ["sharing"]),
        ({"limit": 1}, {"method": "ba2"}, []),
        ({"limit": 1}, {"recipe": "paper", "sharing": "jaccard"}, []),
        ({"limit": 1}, {"granularity": "slice", "sharing": "jaccard"}, []),
        ({"limit": 1, "own": 0.5}, {"own_epochs": 2, "switch_every": 2}, []),
        ({"limit": 0.9}, {"ranking": "random"}, []),
        ({"limit": 0.9}, {"method": "norms"}, []),
    ],
)
def test_what_is_said_of_choosing_where_nothing_is_chosen(
    budget: dict[str, Any], train: dict[str, Any], idle: list[str]
) -> None:
    """It was taken without a word."""
    domain = {"train": ["a"], "test": ["b"]}
    run = {"backbone": {"name": "resnet18"}, "budget": budget, "domains": {"a": domain}}
    assert idle_keys(RunConfig.from_json({**run, "train": train})) == idle
