"""Rows side by side: what is begun, what is told of those that failed, what time ends."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from prunion.benchmarks.gpu.__main__ import main
from prunion.benchmarks.gpu.learning import LearningTask, run_tasks, tasks
from prunion.benchmarks.learning.plan.catalogue import ROWS


def test_the_plan_names_rows_that_there_are_and_none_twice() -> None:
    plan = tasks()
    assert len(set(plan)) == len(plan)
    assert {task.arguments[-1] for task in plan} <= ROWS.keys()
    assert {task.file for task in plan} == {"eight", "methods", "pairs", "lite0"}
    assert plan[0].name == "eight: --domains all --seed 0 tuned-all"


@pytest.mark.thorough  # two processes that import torch
def test_failed_rows_are_named_and_late_ones_not_begun(tmp_path: Path) -> None:
    common = ["--data", str(tmp_path), "--weights", str(tmp_path)]
    (tmp_path / "a.jsonl").write_text(
        '{"key": "resnet18.tuned-all.seed0", "mean": 0.5, "accuracy": {"a": 0.5}}\n', "utf-8"
    )
    done = LearningTask("a", ("--seed", "0", "tuned-all"))
    fails = LearningTask("a", ("--seed", "1", "no-such-row"))
    assert run_tasks([done, fails], tmp_path, common, 2, 1) == (["a: --seed 1 no-such-row"], 0)
    assert run_tasks([fails], tmp_path, common, 2, -1) == ([], 1)


def test_the_command_ends_with_the_names_of_what_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which rows it begins, and with what; that a failure is noticed, the test above shows."""
    begun: list[list[str]] = []

    def fails(command: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        begun.append(command)
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr("prunion.benchmarks.gpu.learning.subprocess.run", fails)
    rows = (("rows", (), "0", "tuned-all tuned-025"),)
    monkeypatch.setattr("prunion.benchmarks.gpu.learning.PLAN", rows)
    arguments = ["learning", "-o", str(tmp_path / "out"), "--data", str(tmp_path)]
    arguments += ["--weights", str(tmp_path), "--lanes", "2", "--set", "nonsense=1"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert "rows: --seed 0 tuned-all; rows: --seed 0 tuned-025" in result.output
    assert len(begun) == 2 and all("nonsense=1" in command for command in begun)
