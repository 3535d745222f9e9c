"""A baseline that would be the same run once more is refused before anything is trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from prunion.runtime.errors import ConfigError
from prunion.trainer.cli import train as train_command
from prunion.trainer.config import load_config
from prunion.trainer.score import baseline_of, check_baseline
from prunion.trainer.score.made_by import not_paired
from tests.support.tiny_run import tiny_run


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (["train.method=norms"], r'method is "norms" \(a BatchNorm and a head'),
        (["train.method=packnet"], 'method is "packnet"'),
        (["budget.limit=1.0"], "limit is the whole network"),
        (["budget.limit=100%"], "limit is the whole network"),
        (["train.recipe=paper", "budget.limit=1.0"], "limit is the whole network"),
    ],
)
def test_of_what_prunes_nothing(changes: list[str], why: str, tmp_path: Path) -> None:
    run = load_config(tiny_run(tmp_path), changes)
    with pytest.raises(ConfigError, match=f"^--baseline .* prunes nothing: .*{why}.*leave it out"):
        check_baseline(run)


@pytest.mark.parametrize(
    "changes",
    [
        [],
        ["train.method=ba2"],
        ["budget.limit=1800"],
        ["budget.limit=1.0", "budget.own=0.5", "train.own_epochs=3", "train.trunk=frozen"],
        ["train.recipe=paper", "train.granularity=slice"],
    ],
)
def test_and_of_nothing_else(changes: list[str], tmp_path: Path) -> None:
    check_baseline(load_config(tiny_run(tmp_path), changes))


@pytest.mark.parametrize(("trunk", "longer"), [("tuned", 0), ("frozen", 3)])
def test_its_trunk_learns_as_long_as_the_run_s(trunk: str, longer: int, tmp_path: Path) -> None:
    """Thinning trains no trunk, so a baseline that settled instead would have learned more."""
    changes = ["budget.own=0.5", "train.own_epochs=3", f"train.trunk={trunk}"]
    run = load_config(tiny_run(tmp_path), changes)
    assert baseline_of(run).train.settle == run.train.settle + longer
    if trunk == "tuned":
        with pytest.raises(ConfigError, match=r"stands still for the 3 .train. own_epochs"):
            check_baseline(run)


def test_an_earlier_ones_trunk_is_told_to_have_learned_for_longer(tmp_path: Path) -> None:
    run = load_config(tiny_run(tmp_path), ["budget.own=0.5", "train.own_epochs=3"])
    before = {
        "config": replace(run, train=replace(run.train, settle=run.train.settle + 3)).to_json()
    }
    assert "for 3 epochs more" in not_paired(before, {"config": run.to_json()}, [])
    assert not_paired({"config": None}, {"config": [1]}, [])  # damaged files are no traceback
    now = {"config": baseline_of(run).to_json()}
    assert not not_paired(now, {"config": run.to_json()}, [])


def test_on_the_command_line(tmp_path: Path) -> None:
    run, out = tiny_run(tmp_path, method='"norms"'), tmp_path / "out"
    found = CliRunner().invoke(train_command, [str(run), "-o", str(out), "--baseline"])
    assert isinstance(found.exception, ConfigError)  # the command line's own end: exit 1
    assert "--baseline" in str(found.exception)
    assert not out.exists()
