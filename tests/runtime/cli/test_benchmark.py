"""`prunion bench`: its report, its durations, its tables."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import click
import pytest

from prunion.runtime.cli.benchmark import bench, seconds_of
from tests.runtime.cli.command_line import invoke, one_error_line


def test_bench_json(bundle_path: Path) -> None:
    arguments = ("--batch", "1,3", "--seconds", "0.02", "--threads", 1, "--json")
    result = invoke("bench", bundle_path, *arguments)
    report = json.loads(result.stdout)
    rows = {(row["session"], row["batch"]) for row in report["rows"]}
    sessions = ("mixed", "blocked", "pinned:flowers")
    assert rows == {(s, n) for s in sessions for n in (1, 3)}
    assert report["peak_rss_bytes"] > 0
    assert report["gpu_bytes"] is None, "of a CPU"
    assert report["file_bytes"]["model.onnx"] == (bundle_path / "model.onnx").stat().st_size
    assert report["load_after"] is None or report["load_after"] >= 0
    compared = [(x["session"], x["against"]) for x in report["comparisons"]]
    assert compared == 2 * [(name, "mixed") for name in sessions[1:]]
    assert all(x["ratio"] > 0 for x in report["comparisons"])
    assert 0 < report["overhead_ms"] < 0.1
    for fresh, session in zip(report["fresh"], sessions, strict=True):
        assert (fresh["session"], fresh["batch"]) == (session, 3)
        assert fresh["peak_rss_bytes"] > fresh["packages_rss_bytes"] > 1 << 20
        assert fresh["load_ms"] > 0 < fresh["first_call_ms"]


@pytest.mark.usefixtures("nothing_fresh")
def test_bench_writes_tables(bundle_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "bench.csv"
    path.touch()  # as mktemp makes one: nothing is lost
    arguments = ("--duration", "20ms", "--batch", 2, "--domains", "signs", "--csv", path)
    table = invoke("bench", bundle_path, *arguments)
    assert table.exit_code == 0, table.output
    assert "pinned:signs / mixed, batch 2: " in table.stdout
    assert "timing itself: " in table.stdout
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["session"] for row in rows] == ["mixed", "blocked", "pinned:signs"]
    assert float(rows[1]["ratio"]) > 0
    assert rows[1]["verdict"]
    assert int(rows[0]["fresh_peak_rss_bytes"]) > 1 << 20


@pytest.mark.parametrize("text", ["10", "0.5s", "20ms", "2m"])
def test_a_duration_has_a_unit_or_is_in_seconds(text: str) -> None:
    seconds = {"10": 10.0, "0.5s": 0.5, "20ms": 0.02, "2m": 120.0}[text]
    (option,) = (x for x in bench.params if x.name == "duration")
    with click.Context(bench) as context:
        assert seconds_of(context, option, text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--duration", "10ms", "--seconds", 1), "--seconds is another name of --duration"),
        (("--batch", "1_0"), "give whole numbers with commas"),
        (("--batch", "1,²"), "give whole numbers with commas"),
    ],
)
def test_what_is_said_twice_or_is_no_number_is_a_usage_error(
    tmp_path: Path, options: tuple[object, ...], told: str
) -> None:
    done = invoke("bench", tmp_path / "no", *options)
    assert done.exit_code == 2 and told in done.stderr


def test_a_table_takes_the_place_of_a_table_alone(bundle_path: Path, tmp_path: Path) -> None:
    """Before anything is measured."""
    (tmp_path / "notes.txt").write_text("mine", "utf-8")
    line = one_error_line(invoke("bench", bundle_path, "--csv", tmp_path / "notes.txt"))
    assert line.endswith("notes.txt is no table of `prunion bench`: choose another place")
    assert (tmp_path / "notes.txt").read_text("utf-8") == "mine"
    one_error_line(invoke("bench", bundle_path, "--csv", tmp_path / "notes.txt" / "x.csv"))


@pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="the system has no /dev/stdout")
def test_a_table_can_be_written_on_a_stream(bundle_path: Path, tmp_path: Path) -> None:
    call = """
from prunion.runtime.cli.main import main
from prunion.runtime.measure.benchmark import fresh, measure

alike = lambda _, name, digest, batch: fresh.Fresh(name, batch, 1.0, 1.0, 2**28, 2**27)
measure.measure_fresh = alike  # as `nothing_fresh`, in that process
main()
"""
    command = [sys.executable, "-c", call, "bench", str(bundle_path), "--csv", "/dev/stdout"]
    command += ["--duration", "20ms", "--domains", "signs"]
    with (tmp_path / "out.txt").open("w+") as out:  # the report comes behind it, not over it
        done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True, check=False)
        assert done.returncode == 0, done.stderr
        out.seek(0)
        text = out.read()
    assert text.startswith("session,batch") and "timing itself: " in text


def test_options_that_a_server_decides_are_told(tmp_path: Path) -> None:
    given = {"backend": "cpu", "threads": "1", "precision": "fp32"}
    options = [word for name, value in given.items() for word in (f"--{name}", value)]
    asked = ("bench", tmp_path / "no", "--scenario", "single", *options)
    told = invoke(*asked, "--url", "http://127.0.0.1:1").stderr
    for name in given:
        assert f"note: --{name} is the server's own" in told
    assert "note" not in invoke(*asked).stderr
