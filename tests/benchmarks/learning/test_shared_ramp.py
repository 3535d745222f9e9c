"""Runs that share a ramp beside runs of their own: pairs, times, and what is there already."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from prunion.benchmarks.learning import shared_ramp
from prunion.benchmarks.learning.paired import packed
from prunion.benchmarks.learning.shared_ramp import main, shared_table
from tests.support.tiny_run import tiny_run


def line(kind: str, budget: str, seed: int, right: int, seconds: float) -> dict[str, Any]:
    bits = np.arange(100) < right
    return {
        "key": f"{kind}.{budget}.seed{seed}",
        "mean": right / 100,
        "accuracy": {"a": right / 100},
        "images": {"a": 100},
        "right": {"a": packed(bits)},
        "seconds": seconds,
        "cpu_seconds": 2 * seconds,
        "resumed": False,
    }


def test_the_table_pairs_seeds_and_adds_up_times() -> None:
    lines = [
        line(kind, budget, seed, right + seed, seconds)
        for seed in (0, 1)
        for budget in ("075", "025")
        for kind, right, seconds in (("separate", 80, 10.0), ("shared-50", 79, 6.0))
    ]
    text = shared_table(lines, 0.5, [0.75, 0.25])
    assert "| 0.75 | 2 | 80.50 | 79.50 | -1.00 |" in text
    assert "time 0.60 of the separate runs', CPU time 0.60 (goal 0.6)" in text
    assert "time" not in shared_table([{**x, "resumed": True} for x in lines], 0.5, [0.75])
    alone = line("separate", "075", 2, 10, 10.0)  # a seed that the other way lacks
    assert "| 0.75 | 2 | 80.50 | 79.50 |" in shared_table([*lines, alone], 0.5, [0.75])
    lines[0]["device"] = "a GPU"  # of seed 0: the time that is left is seed 1's alone
    lines[-1]["seconds"] = 12.0
    assert "time 0.90 of" in shared_table(lines, 0.5, [0.75, 0.25])
    assert "0.75" not in shared_table(lines, 0.0, [0.75])  # another way of settling


def test_time_is_of_the_budgets_asked_for() -> None:
    kinds = (("separate", 10.0), ("shared-50", 6.0))
    lines = [line(kind, b, 0, 80, t) for b in ("075", "025") for kind, t in kinds]
    more = line("separate", "05", 0, 80, 100.0)  # never shared: not in the sum
    assert "time 0.60 of" in shared_table([*lines, more], 0.5, [0.75, 0.25])
    assert "time" not in shared_table([*lines, more], 0.5, [0.75, 0.5, 0.25])
    assert "time" not in shared_table(lines, 0.5, [0.75])  # a part of a sweep is no sweep


def test_a_budget_more_adds_its_own_lines_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of the seed's were appended again, and the file was refused: a key twice."""
    from prunion.trainer.config import load_config

    config = load_config(tiny_run(tmp_path, warmup=1, ramp=1, settle=1))
    monkeypatch.setattr(shared_ramp, "make_config", lambda row, options: config)
    monkeypatch.setattr(
        shared_ramp,
        "_separate",
        lambda key, config, folder: line(key.split(".")[0], key.split(".")[1], 3, 80, 10.0),
    )
    monkeypatch.setattr(
        shared_ramp,
        "_shared",
        lambda keys, *_: [line(key.split(".")[0], key.split(".")[1], 3, 80, 5.0) for key in keys],
    )
    out = tmp_path / "out.jsonl"
    given = ["--data", str(tmp_path), "--weights", str(tmp_path), "-o", str(out), "--seed", "3"]
    for budgets in ("0.7,0.5", "0.7,0.5,0.3"):
        command = [*given, "--budgets", budgets, "--folder", str(tmp_path)]
        told = CliRunner().invoke(main, command, catch_exceptions=False).output
        assert ("time 0.50 of" in told) == (budgets == "0.7,0.5")  # two sweeps' times are mixed
    keys = [json.loads(x)["key"] for x in out.read_text().splitlines()]
    assert len(keys) == len(set(keys)) == 6


def test_what_is_there_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prunion.trainer.config import load_config

    config = load_config(tiny_run(tmp_path, warmup=1, ramp=1, settle=1))
    monkeypatch.setattr(shared_ramp, "make_config", lambda row, options: config)
    out, folder = tmp_path / "out.jsonl", tmp_path / "runs"
    given = ["--data", str(tmp_path), "--weights", str(tmp_path), "-o", str(out)]
    command = [*given, "--budgets", "0.7,0.5,0.7", "--seed", "3", "--folder", str(folder)]
    done = CliRunner().invoke(main, command, catch_exceptions=False)
    assert "| 0.7 | 1 |" in done.output and "goal 0.6" in done.output
    lines = [json.loads(x) for x in out.read_text().splitlines()]
    assert [x["key"] for x in lines] == [
        f"{kind}.{budget}.seed3" for kind in ("separate", "shared-0") for budget in ("07", "05")
    ]
    assert lines[1]["right"] == lines[3]["right"]  # the lowest is the run that it is alone
    monkeypatch.setattr(shared_ramp, "train_run", None)
    again = CliRunner().invoke(main, command, catch_exceptions=False)
    assert again.stdout.strip() in done.stdout
    other = CliRunner().invoke(main, [*command, "--epochs", "1,1,1"])
    assert other.exit_code == 1 and "was made with epochs 2,4,6, and 1,1,1 is asked" in other.output


def test_another_share_of_settling_has_another_key() -> None:
    """0.333 and 0.334 were one run, and so were budgets that differ in their seventh digit."""
    kinds = [shared_ramp._kind(x) for x in (0.0, 0.07, 0.333, 0.334, 0.5)]
    assert kinds == ["shared-0", "shared-7", "shared-33_3", "shared-33_4", "shared-50"]
    assert shared_ramp._plain(0.75) == "075"
    assert shared_ramp._plain(1234567.0) != shared_ramp._plain(1234568.0)
