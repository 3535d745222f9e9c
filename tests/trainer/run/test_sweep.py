"""Several seeds and budgets by one command: each run is what it would be alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from prunion.runtime.errors import BudgetError, PrunionError, StoppedError
from prunion.trainer.cli import train as train_command
from prunion.trainer.config import load_config
from prunion.trainer.learning import Training
from prunion.trainer.run import sweep_table, train_run, train_sweep
from tests.trainer.tiny_run import tiny_run

SHORT = {"warmup": 1, "ramp": 1, "settle": 1}


def checkpoint(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "checkpoint").iterdir())}


def test_runs_that_share_a_warm_up_are_those_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_file, out = tiny_run(tmp_path, **SHORT), tmp_path / "out"
    configs = [load_config(run_file, [f"budget.limit={limit}"]) for limit in (0.7, 0.4)]
    alone = train_run(configs[1], tmp_path / "alone")
    epochs: list[int] = []
    run_epoch = Training.run_epoch

    def counted(self: Training, *rest: object) -> None:
        if len(epochs) == 4:
            raise StoppedError("in the second run's ramp", 143)
        epochs.append(self.epoch)
        run_epoch(self, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Training, "run_epoch", counted)
        with pytest.raises(StoppedError):
            train_sweep(configs, out)
    assert epochs == [0, 1, 2, 1]  # the second has no warm-up of its own
    first = checkpoint(out / "seed-3-budget-0.7")
    result = train_sweep(configs, out, resume=True)
    assert checkpoint(out / "seed-3-budget-0.7") == first
    assert checkpoint(out / "seed-3-budget-0.4") == checkpoint(tmp_path / "alone")
    assert sorted(path.name for path in out.iterdir()) == ["seed-3-budget-0.4", "seed-3-budget-0.7"]
    logs = [
        [
            (x.get("step"), x.get("loss/warm"))
            for x in map(json.loads, path.read_text().splitlines())
        ]
        for path in (out / "seed-3-budget-0.4" / "metrics.jsonl", tmp_path / "alone/metrics.jsonl")
    ]
    assert logs[0] == logs[1]
    assert result.budgets[1]["accuracy"]["warm"]["mean"] == alone.accuracy["warm"]
    assert sweep_table(result).splitlines()[2].startswith("0.4              1")
    again = [load_config(run_file, ["budget.limit=0.4", "train.settle=2"]), configs[0]]
    with pytest.raises(PrunionError, match="belongs to a run with another configuration"):
        train_sweep(again, out, resume=True)


def test_seeds_and_budgets_are_lists_of_the_command(tmp_path: Path) -> None:
    run_file, out = tiny_run(tmp_path, warmup=0, ramp=1, settle=0), tmp_path / "out"
    lists = ["--seed", "0,1", "--budget", "50%,0.6"]
    done = CliRunner().invoke(train_command, [str(run_file), "-o", str(out), *lists, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [(run["seed"], run["budget"]["asked"]) for run in found["runs"]] == [
        (0, "50%"), (0, 0.6), (1, "50%"), (1, 0.6),
    ]  # fmt: skip
    assert (out / "seed-1-budget-50_" / "checkpoint" / "checkpoint.json").is_file()
    each = [run["accuracy"]["cold"] for run in found["runs"][::2]]
    assert found["budgets"][0]["accuracy"]["cold"]["mean"] == pytest.approx(sum(each) / 2)
    for wrong in ("0.5,", "0.5,0.5"):
        done = CliRunner().invoke(train_command, [str(run_file), "--budget", wrong])
        assert done.exit_code == 2 and "give different values" in done.output


def test_a_budget_that_cannot_be_met_ends_it_before_the_first_run(tmp_path: Path) -> None:
    run_file, out = tiny_run(tmp_path, **SHORT), tmp_path / "out"
    configs = [load_config(run_file, [f"budget.limit={limit}"]) for limit in (0.7, 0.001)]
    with pytest.raises(BudgetError, match="give at least"):
        train_sweep(configs, out)
    assert not out.exists()
