"""What a program gives in place of a run file: paths, NumPy's numbers, single values, data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import prunion
from prunion.exporter import training
from prunion.exporter.tables import sees
from prunion.runtime.errors import ConfigError, InputError
from prunion.trainer.config import RunConfig
from tests.support.networks.small import Plain

TABLES: dict[str, Any] = {
    "backbone": {"name": "resnet18"},
    "budget": {"limit": 0.5},
    "domains": {"a": {"train": "x", "test": "y"}, "b": {"source": "python", "holdout": 0.2}},
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What would have been trained."""
    runs: list[Any] = []
    monkeypatch.setattr(training, "train_run", lambda config, folder, **_: runs.append(config))
    monkeypatch.setattr(training, "train_sweep", lambda configs, folder, **_: runs.extend(configs))
    return runs


def test_paths_and_numpys_numbers_are_as_in_a_run_file(asked: list[Any]) -> None:
    shards = {"train": [Path("x.tar"), Path("z.tar")], "test": Path("y")}
    prunion.train(
        {
            **TABLES,
            "seed": np.int64(3),
            "budget": {"limit": np.float32(0.5)},
            "train": {"lr": torch.tensor(0.5)},
            "input": {"size": np.array([32, 48])},
            "domains": {"a": shards},
        }
    )
    (config,) = asked
    assert (config.seed, type(config.seed), config.budget.limit) == (3, int, 0.5)
    assert (config.train.lr, config.input.size) == (0.5, (32, 48))
    assert (config.domains[0].train, config.domains[0].test) == (("x.tar", "z.tar"), ("y",))
    assert RunConfig.from_json(config.to_json()) == config


def test_data_sets_that_no_domain_reads_are_refused(asked: list[Any]) -> None:
    """They were left lying, and the run learned from the folder without a word."""
    prunion.train(TABLES, datasets={"b": [(1, 2)] * 5})
    with pytest.raises(ConfigError, match=r"datasets has 'a', and \[domains.a\] source is \"files"):
        prunion.train(TABLES, datasets={"a": [(1, 2)] * 5})
    with pytest.raises(ConfigError, match="datasets has 'c', and the run has the domains a, b"):
        prunion.train(TABLES, datasets={"c": [(1, 2)] * 5})
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("seeds", "budgets", "expected"),
    [
        (range(2), np.array([0.5, 0.25]), [(0, 0.5), (0, 0.25), (1, 0.5), (1, 0.25)]),
        (3, "50%", [(3, "50%")]),  # not "5", "0" and "%"
        (np.arange(1, 3), None, [(1, 0.5), (2, 0.5)]),
    ],
)
def test_a_sweeps_values_may_be_one_or_an_array(
    asked: list[Any], seeds: Any, budgets: Any, expected: list[Any]
) -> None:
    prunion.sweep(TABLES, seeds=seeds, budgets=budgets)
    assert [(run.seed, run.budget.limit) for run in asked] == expected


def test_what_is_no_run_is_told_in_one_line() -> None:
    with pytest.raises(ConfigError, match="config is 3: give a run file's path, or its tables"):
        prunion.train(3)  # type: ignore[arg-type]


def test_a_networks_size_may_be_a_list() -> None:
    """Taken for none, it became 224."""
    model = Plain()
    model.image_size = [48, 32]  # type: ignore[assignment]
    assert sees(model)["size"] == (48, 32)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"train": {"method": "svd", "trunk": "tuned"}}, "which makes it .frozen.: leave trunk"),
        ({"train": {"trunk_lr": 1e-46}}, "trunk_lr is 1e-46, too little"),
        ({"input": {"std": [1e-20] * 3}}, "std is 1e-20, too little"),
        ({"backbone": {"name": "resnet18", "weights": "nowhere.pt"}}, "nowhere.pt, which is not a"),
    ],
)
def test_tables_are_held_to_the_rules_of_a_file(
    asked: list[Any], change: dict[str, Any], said: str
) -> None:
    """Those were the file reader's: what a file was refused for, a program trained otherwise."""
    for start in (prunion.train, prunion.sweep):
        with pytest.raises(ConfigError, match=said):
            start({**TABLES, **change})
    if "backbone" not in change:
        given = {"train": {}, **TABLES, **change, "backbone": {}, "budget": 0.5}
        with pytest.raises(ConfigError, match=said):
            prunion.prune(Plain(), **given)
    assert not asked


def test_a_run_of_a_programs_own_is_held_to_its_numbers(asked: list[Any]) -> None:
    config = RunConfig.from_json({**TABLES, "train": {"lr": 1e-46}})
    with pytest.raises(ConfigError, match="lr is 1e-46, too little"):
        prunion.train(config)
    config = RunConfig.from_json({**TABLES, "train": {"method": "svd"}})
    prunion.train(config)  # its trunk is frozen by the method, and nobody said otherwise
    assert asked == [config]


@pytest.mark.parametrize("value", ["", "a\0b", b"x", 5])
def test_what_is_no_path_is_named(tmp_path: Path, value: Any) -> None:
    """The empty text, of an unset variable, was the working folder."""
    told = r"is .*: give the path of a file or folder$"
    with pytest.raises(InputError, match=rf"output {told}"):
        prunion.train(TABLES, value)
    for run, output in ((value, tmp_path / "m.prunion"), (tmp_path, value)):
        with pytest.raises(InputError, match=told):
            prunion.export(run, output)
    with pytest.raises(InputError, match=told):
        prunion.verify(value)
    if isinstance(value, str):
        with pytest.raises(InputError, match=told):
            prunion.train(value, tmp_path / "x")
        with pytest.raises(InputError, match=rf"domains\['a'\] {told}"):
            prunion.prune(Plain(), {"a": value}, output=tmp_path / "x")
