"""Rows of a learning run become the table of the docs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from prunion.benchmarks.learning import rows as rows_module
from prunion.benchmarks.learning.paired import packed
from prunion.benchmarks.learning.plan.catalogue import DECIDING, ROWS
from prunion.benchmarks.learning.rows import _together
from prunion.benchmarks.learning.rows import main as learning
from prunion.benchmarks.learning.table import goals, main, table


def row(key: str, accuracy: dict[str, float], params: float = 0.5) -> dict[str, Any]:
    mean = sum(accuracy.values()) / len(accuracy)
    return {
        "key": key,
        "accuracy": accuracy,
        "mean": mean,
        "params": params,
        "macs": 0.8,
        "returned": 1234,
    }


def test_a_row_that_is_there_is_not_run_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row("resnet18.tuned-all.seed0", {"a": 0.5})) + "\n", "utf-8")
    options = ["--data", str(tmp_path), "--weights", str(tmp_path), "-o", str(path)]
    done = CliRunner().invoke(learning, ["tuned-all", *options])
    assert (done.exit_code, done.output) == (0, "")
    unknown = CliRunner().invoke(learning, ["tuned", *options])
    assert unknown.exit_code == 2 and "no row tuned: choose from" in unknown.output
    path.write_text(path.read_text("utf-8") + '{"key": "resnet18.tuned-0', "utf-8")  # killed
    half = CliRunner().invoke(learning, ["tuned-all", *options])
    assert half.exit_code == 1 and "rows.jsonl, line 2, is no row" in half.stderr


def test_networks_of_their_own_make_one_line() -> None:
    """Their files add up; an image runs through one of them."""
    part = {"budget": {}, "uncut": 1.0, "returned": 3, "seconds": 2.0, "torch": "2", "sharing": 1.0}
    ms = {"one": [3.0, 2.0], "one x 8": [9.0, 8.0]}
    part["account"] = {
        "params": 0.2, "params_one_norm": 0.2, "flop": 0.5, "flop_union": 0.5, "error": 1e-6,
        "bytes": {"graph": 100, "packs": 10, "shared": 0}, "ms": ms,
    }  # fmt: skip
    lines = [
        {**part, **row("", {"a": 0.5}, 0.1), "before": {"a": 0.4}, "images": {"a": 8},
         "digests": {"a": "1"}, "right": {"a": "x"}},
        {**part, **row("", {"b": 0.7}, 0.15), "before": {}, "images": {"b": 9},
         "digests": {"b": "2"}, "right": {"b": "y"}},
    ]  # fmt: skip
    line = _together(ROWS["separate-025"], lines)
    assert line["params"] == 0.25 and line["macs"] == 0.8
    assert line["accuracy"] == {"a": 0.5, "b": 0.7} and line["mean"] == pytest.approx(0.6)
    assert line["right"] == {"a": "x", "b": "y"} and line["images"] == {"a": 8, "b": 9}
    assert line["digests"] == {"a": "1", "b": "2"}
    assert line["what"] == ROWS["separate-025"].what
    account = line["account"]
    assert (account["params"], account["flop"], account["bytes"]["graph"]) == (0.4, 0.5, 200)
    assert account["ms"] == ms


def test_rows_that_decide_come_first_every_seed_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[str, int]] = []
    monkeypatch.setattr(
        rows_module, "run_row", lambda name, options: ran.append((name, options["seed"])) or {}
    )
    where = ["--data", str(tmp_path), "--weights", str(tmp_path)]
    seeds = ["--seed", "0", "--seed", "1"]
    named = CliRunner().invoke(
        learning, ["tuned-025", "tuned-all", *where, *seeds, "-o", str(tmp_path / "named.jsonl")]
    )
    assert named.exit_code == 0
    assert ran == [("tuned-025", 0), ("tuned-all", 0), ("tuned-025", 1), ("tuned-all", 1)]
    ran.clear()
    CliRunner().invoke(learning, [*where, *seeds, "-o", str(tmp_path / "all.jsonl")])
    assert [name for name, _ in ran[:10]] == 2 * list(DECIDING)
    untimed = [name for name, row in ROWS.items() if row.kind != "latency"]
    assert {name for name, _ in ran} == set(untimed)
    assert len(ran) == len(set(ran)) == 2 * len(untimed)


def test_every_row_is_a_run_before_the_first_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "run_row", lambda name, options: pytest.fail("was trained"))
    where = ["--data", str(tmp_path), "--weights", str(tmp_path), "-o", str(tmp_path / "o.jsonl")]
    rows = ["own-macs-050", "tuned-macs-050", "--set", "own_epochs=3"]
    told = CliRunner().invoke(learning, [*rows, *where])
    assert told.exit_code == 1 and "own_epochs is 3, but [budget] own" in told.stderr


def test_a_row_of_latency_is_of_one_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        rows_module, "run_row", lambda name, options: {"mean": 0.5, "accuracy": {"a": 0.5}}
    )
    where = ["--data", str(tmp_path), "--weights", str(tmp_path), "-o", str(tmp_path / "o.jsonl")]
    told = CliRunner().invoke(learning, ["tuned-025", "tuned-latency-025", *where])
    assert told.exit_code == 2 and "tuned-latency-025: give --profile" in told.output
    nowhere = ["tuned-latency-025", *where, "--profile", str(tmp_path / "nowhere.json")]
    told = CliRunner().invoke(learning, nowhere)
    assert told.exit_code == 2 and "does not exist" in told.output
    for text in ("one", "one", "another"):
        (tmp_path / "device.json").write_text(text)
        profile = ["--profile", str(tmp_path / "device.json")]
        assert not CliRunner().invoke(learning, ["tuned-latency-025", *where, *profile]).exit_code
    keys = [json.loads(x)["key"] for x in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [key.rpartition("-")[0] for key in keys] == 2 * [
        "resnet18.tuned-latency-025.seed0.profile"
    ]


def test_a_row_is_held_against_its_own_reference() -> None:
    lines = [
        row("resnet18.tuned-050.seed0", {"a": 0.80, "b": 0.70}),
        row("resnet18.tuned-050.seed1", {"a": 0.82, "b": 0.72}, 0.4999),
        row("resnet18.tuned-all.seed0", {"a": 0.85, "b": 0.75}, 1.0),
        row("resnet18.tuned-all.seed1", {"a": 0.88, "b": 0.78}, 1.0),
        row("resnet18.frozen-050.seed0", {"a": 0.6, "b": 0.6}),
    ]
    head, _, *rows = table(lines).splitlines()
    assert head.startswith("| row | seeds | params | MACs | a | b | mean | lost | returned |")
    cells = {line.split("|")[1].strip(): line for line in rows}
    assert list(cells) == ["`tuned-all`", "`frozen-050`", "`tuned-050`"]
    assert (
        "| 2 | 0.5000 | 0.8000 | 81.0 | 71.0 | 76.00 (75.00 … 77.00) | 5.50 (5.00 … 6.00) |"
        in cells["`tuned-050`"]
    )
    assert "| 60.00 |  | 1,234 |" in cells["`frozen-050`"]  # no reference of its kind was run
    assert "| 5.50 / not run / not run | 0.2 / 0.7 / 2 |" in goals(lines)


def test_what_is_lost_tells_of_how_many_seeds_it_is() -> None:
    """The mean beside it is of all three, and one cannot be taken from the other."""
    lines = [row(f"resnet18.tuned-050.seed{seed}", {"a": 0.8 + seed / 100}) for seed in range(3)]
    lines += [row(f"resnet18.tuned-all.seed{seed}", {"a": 0.9}) for seed in range(2)]
    assert "| 81.00 (80.00 … 82.00) | 9.50 (9.00 … 10.00), 2 of 3 seeds |" in table(lines)
    assert "2 of" not in table(lines[:2] + lines[3:])


def test_what_is_lost_beside_an_interval_is_of_the_same_answers() -> None:
    """The column of accuracies may have been averaged over several views, the answers were not."""
    lines = []
    for name, right in (("tuned-all", 90), ("tuned-050", 80)):
        for seed in range(2):
            bits = {"a": packed(np.arange(100) < right + seed)}
            line = row(f"resnet18.{name}.seed{seed}", {"a": 0.7})
            lines.append({**line, "images": {"a": 100}, "right": bits})
    assert "| 10.00 [" in table(lines)


def test_backbones_and_epochs_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    keys = ["resnet18.tuned-all.seed0", "lite0.tuned-all.seed0", "resnet18.tuned-all.seed0.e1-1-1"]
    path.write_text("\n".join(json.dumps(row(key, {"a": 0.5})) for key in keys), "utf-8")
    output = CliRunner().invoke(main, [str(path)], catch_exceptions=False).output
    assert output.count("| row |") == 3
    assert "resnet18 e1-1-1:" in output


def test_a_row_of_latency_is_in_the_table_of_the_others(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    timed = "resnet18.tuned-latency-025.seed0.all.profile-{}.round-16"
    other = timed.format("ff").replace("seed0", "seed1")  # another device is no other seed
    keys = ["resnet18.tuned-all.seed0.all", timed.format("0a"), other]
    path.write_text("\n".join(json.dumps(row(key, {"a": 0.5})) for key in keys), "utf-8")
    output = CliRunner().invoke(main, [str(path)], catch_exceptions=False).output
    first, second = output.split("resnet18 all profile-ff round-16:")
    assert first.count("`tuned-latency-025`") == second.count("`tuned-latency-025`") == 1
    assert "| 0.00 | 1,234 |" in first  # it is held against every channel


def test_a_frozen_trunks_rows_stand_beside_tuned_ones_however_these_were_tuned(
    tmp_path: Path,
) -> None:
    """What tunes a trunk is in the keys of tuned rows alone; one command runs both kinds."""
    path = tmp_path / "rows.jsonl"
    tuned = "resnet18.tuned-025.seed0.all.precision-bf16.trunk_lr-1.2e-3.trunk_optimiser-adamw"
    keys = [tuned, "resnet18.frozen-all.seed0.all.precision-bf16", "resnet18.frozen-all.seed0.all"]
    path.write_text("\n".join(json.dumps(row(key, {"a": 0.5})) for key in keys), "utf-8")
    output = CliRunner().invoke(main, [str(path)], catch_exceptions=False).output
    found = output.split("resnet18 ")
    (group,) = (text for text in found if "trunk_optimiser-adamw:" in text)
    assert group.count("`frozen-all`") == group.count("`tuned-025`") == 1
    assert len(found) == 4 and output.count("`frozen-all`") == 3
