"""A row's run and its key, and what a network of its own is given."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest

from prunion.benchmarks.learning import rows as rows_module
from prunion.benchmarks.learning.plan.catalogue import ROWS
from prunion.benchmarks.learning.plan.row_config import _changes, key_of, make_config, trained_alone
from prunion.runtime.errors import ConfigError
from prunion.trainer.config import load_config
from prunion.trainer.data import JointBatches, open_domains
from tests.support.tiny_run import tiny_run

OPTIONS: dict[str, Any] = {
    "data": ".", "weights": ".", "epochs": "2,4,6", "settings": [], "teacher": "",
    "round_to": 1, "profile": "", "keep": (), "backbone": "resnet18",
    "domains": "gtsrb,flowers5,dtd10,sketch", "holdout": False, "share": 0.1, "seed": 0,
    "threads": 1,
}  # fmt: skip


def test_settings_of_a_row_are_read_as_toml() -> None:
    changes = _changes(["lr=auto", "trunk_lr=3e-4", "domain_budget=true", "sharing_weight=0.5"])
    assert changes == {"lr": "auto", "trunk_lr": 3e-4, "domain_budget": True, "sharing_weight": 0.5}
    for wrong in ("trunk_lr", "opens=true", "=1"):
        with pytest.raises(click.UsageError, match=f"--set {wrong}: give KEY=VALUE"):
            _changes([wrong])


def test_what_tunes_a_trunk_is_not_meant_for_rows_that_freeze_it() -> None:
    """So one command runs rows of both kinds; their keys say what each was told."""
    options = {**OPTIONS, "settings": ["trunk_optimiser=adamw", "precision=bf16"]}
    assert key_of("frozen-all", options) == "resnet18.frozen-all.seed0.precision-bf16"
    assert key_of("tuned-all", options).endswith(".precision-bf16.trunk_optimiser-adamw")
    assert make_config(ROWS["tuned-all"], options).train.trunk_optimiser == "adamw"
    train = make_config(ROWS["frozen-all"], options).train
    assert (train.trunk_optimiser, train.precision) == ("muon", "bf16")
    with pytest.raises(click.UsageError, match="trunk_speed=1"):
        make_config(ROWS["frozen-all"], {**OPTIONS, "settings": ["trunk_speed=1"]})
    with pytest.raises(ConfigError, match="trunk_optimiser is 'fast'"):
        make_config(ROWS["frozen-all"], {**OPTIONS, "settings": ["trunk_optimiser=fast"]})


@pytest.mark.parametrize(("name", "limit"), [("separate-050", 0.25), ("separate-each-050", 0.5)])
def test_networks_of_their_own_share_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, limit: float
) -> None:
    seen: list[tuple[str, float, str]] = []

    def run(which: object, config: Any, folder: Path) -> None:
        (domain,) = config.domains
        seen.append((domain.name, config.budget.limit, folder.name))

    monkeypatch.setattr(rows_module, "_run", run)
    monkeypatch.setattr(
        rows_module, "trained_alone", lambda c: [replace(c, domains=(d,)) for d in c.domains]
    )
    monkeypatch.setattr(rows_module, "_together", lambda which, lines: {})
    options = {
        "data": str(tmp_path), "weights": str(tmp_path), "epochs": "1,2,3", "settings": [],
        "teacher": "", "round_to": 1, "profile": "", "keep": (), "backbone": "resnet18",
        "domains": "gtsrb,dtd10",
        "holdout": False, "share": 0.1, "seed": 0, "threads": 1, "folder": str(tmp_path),
    }  # fmt: skip
    rows_module.run_row(name, options)
    assert seen == [("gtsrb", limit, "gtsrb"), ("dtd10", limit, "dtd10")]


def test_the_run_of_a_row(tmp_path: Path) -> None:
    options = {
        "data": str(tmp_path), "weights": str(tmp_path), "epochs": "1,2,3", "settings": ["lr=0.5"],
        "teacher": "", "round_to": 1, "profile": "", "keep": ("conv1",),
        "backbone": "resnet18", "domains": "gtsrb,flowers5",
        "holdout": True, "share": 0.1, "seed": 4, "threads": 1,
    }  # fmt: skip
    config = make_config(ROWS["frozen-macs-050"], options)
    assert (config.budget.kind, config.budget.limit, config.seed) == ("macs", 0.5, 4)
    assert config.backbone.keep == ("conv1",)
    assert (config.train.trunk, config.train.lr, config.train.epochs) == ("frozen", 0.5, 6)
    assert [(d.name, d.mirror, d.holdout, d.test) for d in config.domains] == [
        ("gtsrb", False, 0.1, ()), ("flowers5", True, 0.1, ())
    ]  # fmt: skip


def test_every_row_is_a_run() -> None:
    """A method's name, the budget's kind unless it is parameters, and its share."""
    options = {
        "data": ".", "weights": ".", "epochs": "2,4,6", "settings": [], "teacher": "",
        "round_to": 1, "profile": "device.json", "keep": (),
        "backbone": "resnet18", "domains": "gtsrb", "holdout": False, "share": 0.1, "seed": 0,
        "threads": 1,
    }  # fmt: skip
    assert len(make_config(ROWS["tuned-025"], {**options, "domains": "all"}).domains) == 8
    for row in ROWS.values():
        make_config(row, options)
    once = make_config(ROWS["one-shot-macs-025"], options)
    assert (once.budget.kind, once.budget.limit) == ("macs", 0.25)
    assert (once.train.recipe, once.train.ranking) == ("once", "importance-per-cost")
    assert make_config(ROWS["one-shot-undivided-010"], options).train.ranking == "importance"
    first = make_config(ROWS["slim-first-taylor-global-025"], options).train
    assert (first.warmup, first.ramp, first.settle) == (0, 8, 4)  # the rates of 2, 4, 6


def test_a_network_of_its_own_sees_what_the_joint_one_shows_its_domain(tmp_path: Path) -> None:
    """Its batch of a step, and no fewer steps or images, in every phase."""
    config = load_config(tiny_run(tmp_path, warmup=2, ramp=3, settle=4))
    config = replace(config, train=replace(config.train, batch_size=6))
    few = replace(config.domains[0], limit=9)  # a set that the joint epoch passes over many times
    config = replace(config, domains=(few, *config.domains[1:]))
    joint = JointBatches(open_domains(config.domains, config.seed), config)
    for index, alone in enumerate(trained_alone(config)):
        (domain,) = alone.domains
        assert domain == config.domains[index]
        own = JointBatches(open_domains(alone.domains, alone.seed), alone)
        assert own.sizes == [joint.sizes[index]]
        for phase in ("warmup", "ramp", "settle"):
            steps = getattr(alone.train, phase) * own.steps_per_epoch
            wanted = getattr(config.train, phase) * joint.steps_per_epoch
            assert wanted <= steps < wanted + own.steps_per_epoch
    few_alone, many_alone, *_ = trained_alone(config)
    assert few_alone.train.epochs > many_alone.train.epochs


def test_other_settings_have_other_keys(tmp_path: Path) -> None:
    def key(**options: Any) -> str:
        return key_of("tuned-025", {**OPTIONS, **options})

    assert key(holdout=True, share=0.25).endswith(".holdout25")
    assert key(holdout=True, share=0.05).endswith(".holdout05")
    assert key(holdout=True, share=0.121) != key(holdout=True, share=0.119)
    for name in "ab":
        (tmp_path / name / "run").mkdir(parents=True)
        (tmp_path / name / "run" / "record.json").write_text(name)
    taught = [key(teacher=str(tmp_path / name / "run")) for name in "ab"]
    assert taught[0] != taught[1] and all(".taught-by-run-" in x for x in taught)
    assert "." not in taught[0].removeprefix("resnet18.tuned-025.seed0.")


@pytest.mark.parametrize("epochs", ["2,4", "2,4,x", ""])
def test_epochs_that_are_not_three_numbers_are_told(epochs: str) -> None:
    with pytest.raises(click.UsageError, match="give three whole numbers"):
        make_config(ROWS["tuned-025"], {**OPTIONS, "epochs": epochs})


def test_rows_of_a_steep_ramp_keep_the_one_they_had() -> None:
    """Their names are in files; what is usual now is a setting, which their keys show."""
    for name, row in ROWS.items():
        options = {**OPTIONS, "settings": []}
        train = make_config(row, options).train if row.kind != "latency" else None
        if name in ("tuned-010", "frozen-macs-010", "greedy-undivided-005", "separate-025"):
            assert train is not None and train.ramp_shape == "linear"
        elif row.limit >= 0.25 and train is not None and not row.separate:
            assert train.ramp_shape == "auto"
    steep = {**OPTIONS, "settings": ["ramp_shape=geometric"]}
    assert make_config(ROWS["tuned-010"], steep).train.ramp_shape == "geometric"
    assert key_of("tuned-010", steep).endswith(".ramp_shape-geometric")
