"""Rows of one seed that did not come out of warm-up alike are told of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from click.testing import CliRunner

from prunion.benchmarks.learning import paired, table
from prunion.benchmarks.learning.certainty.warm_up import warm_up_notes

RESULTS = Path(__file__).parents[3] / "benchmarks/learning/results"


def line(name: str, before: float, seed: int = 0, set: str = "all") -> dict[str, Any]:
    return {"key": f"resnet18.{name}.seed{seed}.{set}", "before": {"a": before, "b": before}}


def test_rows_that_warm_up_alike_and_differ_are_warned_of() -> None:
    lines = [line("tuned-025", 0.7), line("one-shot-025", 0.7), line("tuned-050", 0.71)]
    (note,) = warm_up_notes(lines)
    assert note == (
        "warning: resnet18, seed0 did not come out of warm-up alike: "
        "70.00 of tuned-025, one-shot-025; 71.00 of tuned-050"
    )
    assert not warm_up_notes(lines[:2])


def test_a_ramps_shape_is_no_other_warm_up() -> None:
    other = line("tuned-025", 0.71, set="all.ramp_shape-geometric")
    (note,) = warm_up_notes([line("tuned-025", 0.7), other])
    assert "70.00 of tuned-025; 71.00 of tuned-025" in note
    apart = line("tuned-025", 0.71, set="all.precision-bf16.ramp_shape-geometric")
    assert not warm_up_notes([line("tuned-025", 0.7), apart])


def test_rows_that_warm_up_otherwise_are_not() -> None:
    one = line("tuned-025", 0.7)
    others = [
        line("tuned-025", 0.5, seed=1),
        line("tuned-025", 0.5, set="all.precision-bf16"),
        line("frozen-025", 0.5),
        line("separate-025", 0.6),
        line("slim-first-taylor-global-025", 0.4),
        {"key": "shared-50.05.seed0"},
    ]
    assert not warm_up_notes([one, *others])


def test_both_commands_print_it() -> None:
    path = str(RESULTS / "eight.jsonl")
    set = "all.precision-bf16.trunk_optimiser-adamw"
    told = CliRunner().invoke(paired.main, [path, f"tuned-all.{set}", f"tuned-050.{set}"])
    warning = "warning: resnet18, seed0 did not come out of warm-up alike: 74.65 of tuned-all"
    assert told.exit_code == 0 and f"{warning}; 75.74 of tuned-050" in told.output
    alike = CliRunner().invoke(paired.main, [path, f"tuned-all.{set}", f"tuned-025.{set}"])
    assert alike.exit_code == 0 and "warning" not in alike.output
    whole = CliRunner().invoke(table.main, [path])
    assert whole.exit_code == 0 and whole.output.count("warning: ") == 3
    assert "78.93 of one-shot-undivided-025" in whole.output  # another processor's
