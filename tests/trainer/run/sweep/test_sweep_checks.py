"""Sweeps of slices, and of finished runs whose files are damaged."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from click.testing import CliRunner

from prunion import sweep
from prunion.runtime.cli import cli
from prunion.runtime.errors import BudgetError, ConfigError, PrunionError
from prunion.trainer.config import RunConfig, load_config
from prunion.trainer.learning import Training
from prunion.trainer.run import RunResult, train_run, train_sweep, train_with_baseline
from prunion.trainer.run.folder import folder as run_folder
from prunion.trainer.run.sweep import finished, runs
from prunion.trainer.run.sweep.branches import Shared
from prunion.trainer.run.sweep.sweep_run import SweepRun
from tests.support.tiny_run import tiny_run
from tests.trainer.run.sweep.test_sweep import SHORT, checkpoint


def test_slices_pay_from_their_first_step_and_share_none(tmp_path: Path) -> None:
    """The higher budget's warm-up was charged with the lower one's limit."""
    keys = {"warmup": 1, "ramp": 1, "settle": 1, "switch_lr": 1e-3}
    run_file = tiny_run(tmp_path, **keys, granularity='"slice"', trunk='"frozen"')
    configs = [load_config(run_file, [f"budget.limit={limit}"]) for limit in (0.3, 0.6)]
    for shared in get_args(Shared):
        train_sweep(configs, tmp_path / shared, shared=shared)
    alone = [train_run(config, tmp_path / f"alone{i}") for i, config in enumerate(configs)]
    for shared in get_args(Shared):
        for run, limit in zip(alone, (0.3, 0.6), strict=True):
            place = tmp_path / shared / f"seed-3-budget-{limit}"
            assert checkpoint(place) == checkpoint(run.folder)
    low = load_config(run_file, ["budget.limit=84"])
    with pytest.raises(BudgetError, match="give at least 85"):
        train_sweep([configs[0], low], tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run file; a sweep of one budget is in `out` beside it."""
    run_file = tiny_run(tmp_path_factory.mktemp("begun"), **SHORT)
    train_sweep([load_config(run_file, ["budget.limit=0.7"])], run_file.parent / "out")
    return run_file


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("record.json", "{}", "holds no result"),
        ("record.json", '{"result": {"accuracy": {}}}', "without what a sweep's table tells"),
        ("checkpoint/checkpoint.json", "[]", "holds no config"),
    ],
)
def test_a_damaged_finished_run_is_told_before_others_are_trained(
    begun: Path, tmp_path: Path, file: str, text: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = [load_config(begun, [f"budget.limit={limit}"]) for limit in (0.7, 0.4)]
    shutil.copytree(begun.parent / "out", tmp_path / "out")
    place = tmp_path / "out" / "seed-3-budget-0.7"
    (place / file).write_text(text)
    monkeypatch.setattr(Training, "run_epoch", lambda *_: pytest.fail("it trained"))
    with pytest.raises(PrunionError, match=said):
        train_sweep(configs, tmp_path / "out", resume=True)


def test_two_spellings_of_a_budget_are_one(tmp_path: Path) -> None:
    """The table had one row of both, with a spread between two trainings of the same run."""
    run_file = tiny_run(tmp_path, **SHORT)
    for one, other in (("0.5", "'50%'"), ("1e3", "1000")):
        configs = [load_config(run_file, [f"budget.limit={x}"]) for x in (one, other)]
        with pytest.raises(PrunionError, match="have the same seed and budget: leave one out"):
            train_sweep(configs, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_sweeps_cannot_train_in_one_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one's --force removed the states that the first one's runs were to start from."""
    monkeypatch.setattr(run_folder, "PATIENCE", 0.0)
    run_file, out = tiny_run(tmp_path, **SHORT), tmp_path / "out"
    configs = [load_config(run_file, [f"budget.limit={limit}"]) for limit in (0.7, 0.4)]
    go, begun = runs.train_run, []

    def second(config: RunConfig, place: Path, **more: object) -> RunResult:
        begun.append(place.name)
        kept = sorted(out.glob("fork.*"))
        with pytest.raises(PrunionError, match=f"another process trains in {out}"):
            train_sweep(configs, out, force=True)
        assert sorted(out.glob("fork.*")) == kept
        return go(config, place, **more)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(runs, "train_run", second)
        result = train_sweep(configs, out)
    assert begun == ["seed-3-budget-0.4", "seed-3-budget-0.7"]
    assert result.runs[0]["branched_from"]
    train_sweep(configs, out, force=True)


def test_no_run_with_force_removes_a_baseline_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "PATIENCE", 0.0)
    config, out = load_config(tiny_run(tmp_path, **SHORT)), tmp_path / "out"
    go = runs.train_run

    def second(config: RunConfig, place: Path, **more: object) -> RunResult:
        if place.name == "baseline":
            with pytest.raises(PrunionError, match=f"another process trains in {out}"):
                train_run(config, out, force=True)
        return go(config, place, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(runs, "train_run", second)
    assert train_with_baseline(config, out).baseline is not None


def test_what_runs_cannot_share_is_refused(tmp_path: Path) -> None:
    """Any other word meant "warm-up"."""
    with pytest.raises(ConfigError, match=r"share is 'Ramp': use"):
        sweep(tiny_run(tmp_path, **SHORT), tmp_path / "out", budgets=(0.7, 0.4), share="Ramp")  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="means nothing without several budgets: leave it out"):
        sweep(tiny_run(tmp_path), tmp_path / "out", seeds=[1, 2], share="warm-up")


def test_several_budgets_of_what_prunes_nothing_are_refused(tmp_path: Path) -> None:
    """The same network was trained once for each, and drawn as a frontier."""
    run_file = tiny_run(tmp_path, **SHORT, method='"norms"', trunk='"frozen"')
    configs = [load_config(run_file, [f"budget.limit={limit}"]) for limit in (0.7, 0.4)]
    said = r'budgets has 2 limits, and \[train\] method is "norms"'
    with pytest.raises(ConfigError, match=said):
        train_sweep(configs, tmp_path / "out")
    with pytest.raises(ConfigError, match=said):  # no option's name: there is no command line
        sweep(run_file, tmp_path / "out", budgets=(0.7, 0.4))
    arguments = ["train", str(run_file), "-o", str(tmp_path / "out"), "--budget", "0.7,0.4"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 1 and "--budget has 2 limits, and" in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("own", "train", "limits", "said"),
    [
        (0.9, {}, (0.5, 1.0), "own is 0.9, .* and its limit cuts nothing"),
        (0.05, {"recipe": '"once"', "own_epochs": 2}, (0.9, 0.4), "the narrowest network"),
    ],
)
def test_what_a_domain_may_use_is_asked_of_every_budget(
    tmp_path: Path,
    own: float,
    train: dict[str, object],
    limits: tuple[float, float],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was asked of the first alone: the others were refused once that was trained."""
    run_file = tiny_run(tmp_path, **SHORT, **train)
    changes = [f"budget.own={own}", "budget.kind=macs"]
    configs = [load_config(run_file, [*changes, f"budget.limit={x}"]) for x in limits]
    monkeypatch.setattr(Training, "run_epoch", lambda *_: pytest.fail("it trained"))
    with pytest.raises(PrunionError, match=said):
        train_sweep(configs, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_runs_of_another_seed_that_chose_images_are_alike_but_for_these(tmp_path: Path) -> None:
    """Where nobody drew by their seed they were called damaged, and a picture left them out."""
    asked = load_config(tiny_run(tmp_path))
    drawn = replace(asked.domains[0], test=(), holdout=0.25)
    asked = replace(asked, seed=1, domains=(drawn, asked.domains[1]))
    before = replace(asked, seed=0)

    def record(place: str, config: RunConfig, digests: tuple[str, str], classes: list[str]) -> Path:
        domains = {
            name: {"classes": classes, "images": {"train": 8}, "digests": {"train": f"1:{x * 64}"}}
            for name, x in zip(("warm", "cold"), digests, strict=True)
        }
        made_by = {"config": config.to_json(), "domains": domains}
        (tmp_path / place).mkdir()
        (tmp_path / place / "record.json").write_text(json.dumps({"made_by": made_by}), "utf-8")
        return tmp_path / place

    now = [SweepRun(asked, record("now", asked, ("a", "c"), ["x"]))]
    place = record("seed", before, ("b", "c"), ["x"])
    assert finished._other_than(before, place, now) == ""
    assert "other training images of warm" in finished._other_than(asked, place, now)
    for number, (digests, classes, told) in enumerate(
        [
            (("b", "d"), ["x"], "other training images of cold"),
            (("b", "c"), ["y"], "other classes of warm"),
        ]
    ):
        place = record(f"other{number}", before, digests, classes)
        assert told in finished._other_than(before, place, now)
