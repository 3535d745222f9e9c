"""The picture of the learning table: which rows are on it, and that it is the same each time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from prunion.benchmarks.learning.frontier import main, shares_of_time, spots
from prunion.runtime.errors import InputError


def line(key: str, mean: float, params: float = 0.25, macs: float = 0.6) -> dict[str, Any]:
    return {"key": key, "mean": mean, "accuracy": {"a": mean}, "params": params, "macs": macs}


LINES = [
    line("resnet18.tuned-025.seed0.all", 0.75, params=0.24),
    line("resnet18.tuned-025.seed1.all", 0.77),
    line("resnet18.tuned-macs-050.seed0.all", 0.78, macs=0.5),
    line("resnet18.tuned-025.seed0", 0.9),
    line("resnet18.tuned-025.seed0.all.average-1", 0.9),
    line("resnet18.one-shot-floor-010.seed0.all", 0.6, params=0.1),
    line("resnet18.one-shot-undivided-025.seed0.all", 0.6),
    line("resnet18.tuned-all.seed0.all", 0.8, params=1.0, macs=1.0),
]


def test_seeds_of_a_row_are_one_spot_and_other_settings_are_none_of_it() -> None:
    found = {(spot.method, spot.kind, spot.params): spot for spot in spots(LINES, "all")}
    assert set(found) == {
        ("tuned", "params", 0.25),
        ("tuned", "macs", 0.25),
        ("one-shot-floor", "params", 0.1),
        ("tuned-all", "params", 1.0),
    }
    spot = found["tuned", "params", 0.25]
    assert (spot.mean, spot.low, spot.high) == (pytest.approx(0.76), 0.75, 0.77)


def test_a_picture_is_the_same_each_time(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows, out = tmp_path / "rows.jsonl", tmp_path / "frontier.svg"
    rows.write_text("".join(json.dumps(each) + "\n" for each in LINES), "utf-8")
    drawn = []
    for _ in range(2):
        done = CliRunner().invoke(main, [str(rows), "--like", "all", "-o", str(out)])
        assert done.exit_code == 0, done.output
        drawn.append(out.read_bytes())
    assert drawn[0] == drawn[1] and b"union, learned switches" in drawn[0]
    none = CliRunner().invoke(main, [str(rows), "--like", "holdout", "-o", str(out)])
    assert none.exit_code == 2 and "with these settings" in none.output


def timed(row: str, ratio: float, against: str = "tuned-all") -> str:
    return json.dumps({"row": row, "against": against, "ratio": {"one": [ratio, None, None]}})


def test_measured_time_is_a_third_panel(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows, times, out = (tmp_path / name for name in ("rows.jsonl", "times.jsonl", "frontier.svg"))
    rows.write_text("".join(json.dumps(each) + "\n" for each in LINES), "utf-8")
    keys = [f"resnet18.tuned-025.seed{seed}.all" for seed in (0, 1)]  # named whole where two are
    lines = [timed("tuned-all", 1.02), *map(timed, keys, (0.5, 0.7)), timed("finetune", 1.0)]
    times.write_text("\n".join(lines) + "\n", "utf-8")
    read = shares_of_time(times, like="all")
    assert read == {"tuned-all": 1.0, "tuned-025": pytest.approx(0.6), "finetune": 1.0}
    found = {spot.method: spot.time for spot in spots(LINES[:2], "all", read)}
    assert found == {"tuned": pytest.approx(0.6)}
    asked = [str(rows), "--like", "all", "-o", str(out)]
    assert not CliRunner().invoke(main, asked).exit_code
    assert b"time of one image" not in out.read_bytes()
    done = CliRunner().invoke(main, [*asked, "--latency", str(times)])
    assert not done.exit_code, done.output
    assert b"time of one image" in out.read_bytes()
    times.write_text(timed("finetune", 1.0), "utf-8")
    other = CliRunner().invoke(main, [*asked, "--latency", str(times)])
    assert other.exit_code == 2 and "has no time of any of these rows" in other.output


def test_times_of_another_backbone_or_other_settings_are_not_averaged_in(tmp_path: Path) -> None:
    times = tmp_path / "times.jsonl"
    whole = {name: f"{name}.tuned-all.seed0.all" for name in ("resnet18", "lite0")}
    lines = [
        *(timed(key, 1.0, key) for key in whole.values()),
        timed("resnet18.tuned-025.seed0.all", 0.6, whole["resnet18"]),
        timed("lite0.tuned-025.seed0.all", 1.1, whole["lite0"]),
        timed("resnet18.tuned-025.seed0", 0.9, whole["resnet18"]),
    ]
    times.write_text("\n".join(lines), "utf-8")
    assert shares_of_time(times, "resnet18", "all") == {"tuned-all": 1.0, "tuned-025": 0.6}
    assert shares_of_time(times, "lite0", "all") == {"tuned-all": 1.0, "tuned-025": 1.1}
    with pytest.raises(InputError, match=r"line 5, is against resnet18\.tuned-all\.seed0\.all"):
        shares_of_time(times, "resnet18", "")


def test_rows_of_latency_stand_beside_the_others() -> None:
    timed_row = line("resnet18.tuned-latency-025.seed0.all.profile-0a1b2c3d.round-16", 0.7)
    found = {(spot.method, spot.kind): spot.mean for spot in spots([*LINES, timed_row], "all")}
    assert found["tuned", "latency"] == 0.7
    other = line("resnet18.tuned-latency-025.seed1.all.profile-ffffffff.round-16", 0.7)
    with pytest.raises(InputError, match=r"profile-ffffffff.round-16 are one spot"):
        spots([timed_row, other], "all")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"key": "a", "mean": 0.5}', "line 1, is no line of .*latency"),
        (timed("tuned-025", 0.5, "frozen-all"), "is against frozen-all: measure with --reference"),
        ('{"row": "a", "against": "tuned-all", "ratio": {}}', "line 1, is no line"),
        ("[]", "line 1, is no line"),
    ],
)
def test_what_is_no_file_of_times_is_refused(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "times.jsonl").write_text(text, "utf-8")
    with pytest.raises(InputError, match=told):
        shares_of_time(tmp_path / "times.jsonl")
