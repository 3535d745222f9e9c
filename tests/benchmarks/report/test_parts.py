"""Pages of runs that were stopped, of many domains and long names, and of what was measured."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib", reason="needs prunion[report]")

from prunion.benchmarks.report.charts_answers import check_answers
from prunion.benchmarks.report.charts_channels import channel_charts
from prunion.benchmarks.report.charts_runs import (
    accuracy_chart,
    budget_chart,
    curve_charts,
    frontier_charts,
)
from prunion.benchmarks.report.join import with_file
from prunion.benchmarks.report.measured import measured_notes, measured_tables
from prunion.benchmarks.report.page import _overview, charts_of, html_page
from prunion.benchmarks.report.paint import LIGHT, Chart, painted, short
from prunion.benchmarks.report.subject import Subject
from prunion.benchmarks.report.subjects import read_subjects
from prunion.runtime.errors import InputError

MANY = [f"domain {index:02} of many" for index in range(40)]
WHOLE = (1.0, 1.0)


def subject(names: list[str], **more: Any) -> Subject:
    log = [{"step": i, "cost": 1.0, **{f"loss/{n}": 1.0 / (i + 1) for n in names}} for i in (0, 1)]
    accuracy = dict.fromkeys(names, 0.5)
    return Subject("run", accuracy, {}, WHOLE, WHOLE, {}, "", log=log, **more)


def drawn(chart: Chart) -> Any:
    figure = painted(chart, LIGHT)
    figure.canvas.draw()
    return figure


def test_a_legend_of_many_domains_leaves_the_picture_its_room() -> None:
    """Of forty domains it covered the curves."""
    (loss,) = (x for x in curve_charts(subject(MANY)) if x.name == "curve-loss")
    figure = drawn(loss)
    picture, legend = figure.axes[0].get_window_extent(), figure.legends[0].get_window_extent()
    assert legend.y1 <= picture.y0
    assert picture.height > 100


def test_names_of_many_columns_do_not_run_into_each_other() -> None:
    names = MANY[::2]  # each takes a row and a column of numbers
    sharing = {a: dict.fromkeys(names, 0.5) for a in names}
    chosen = {name: {"conv1": 0.5, "conv2": 1.0} for name in names}
    for chart in channel_charts(subject(names, sharing=sharing, chosen=chosen)):
        labels = [x.get_window_extent() for x in drawn(chart).axes[0].get_xticklabels()]
        assert all(b.x0 - a.x0 > 0.7 * a.width for a, b in pairwise(labels)), chart.name


def test_a_domain_that_the_baseline_lacks_has_no_figure() -> None:
    chart = accuracy_chart(subject(["old", "new"], baseline={"old": 0.6}, epochs=(1, 4)))
    assert chart is not None
    assert chart.rows[1:] == (("old", "50.00%", "60.00%", "-10.00"), ("new", "50.00%", "-", "-"))


def test_a_run_that_was_stopped_shows_how_it_learned(tmp_path: Path) -> None:
    folder = tmp_path / "stopped"
    folder.mkdir()
    lines = [{"step": i, "cost": 1.0, "target": 1.0, "loss/a": 2.0 - i} for i in range(2)]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 2, "lo'
    (folder / "metrics.jsonl").write_text(text, "utf-8")
    (found,) = read_subjects([folder])
    assert found.unfinished == ("a",)
    page = html_page([found], [], [{"How it learned": curve_charts(found)}])
    assert "This run is not done" in page
    assert "not done</td>" in page
    assert "Training loss" in page
    assert "NOT met" not in page
    done = replace(subject(["a"]), params=(100.0, 50.0))
    assert budget_chart([done, found]) is None, "one point"


def test_networks_are_compared_on_the_domains_that_all_have() -> None:
    """The mean over easy domains stood above that over others, as if it were the better network."""
    one = replace(subject(["a", "b"]), accuracy={"a": 0.8, "b": 0.2})
    two = replace(subject(["a"]), accuracy={"a": 0.7}, macs=(1.0, 0.5))
    (chart,) = frontier_charts([one, two])
    assert [row[2] for row in chart.rows] == ["mean accuracy of a", "80.00%", "70.00%"]
    assert frontier_charts([one, subject(["c"])]) == []
    same = [one, replace(one, macs=(1.0, 0.5))]
    assert frontier_charts(same)[0].rows[0][2] == "mean accuracy"


def test_a_name_is_cut_by_the_width_of_its_letters() -> None:
    """Of Chinese names the letters left the picture a tenth of its width."""
    assert short("layer1.0.conv1") == "layer1.0.conv1"
    assert short("a" * 30 + "b" * 30, 10) == "aaaa…bbbbb"
    assert short("花" * 40, 10) == "花花…花花"
    assert short("花" * 5, 10) == "花" * 5


def test_names_of_any_length_are_broken_into_lines() -> None:
    page = html_page([subject(["x" * 300])], [], [{}])
    (body,) = (part for part in page.split("}") if part.strip().startswith("body{margin"))
    assert "overflow-wrap:anywhere" in body


TIMING = {"p50_ms": 2.0, "p90_ms": 3.0, "p99_ms": 4.0}
ROWS = [
    {"session": x, "batch": 1, "timing": TIMING, "images_per_second": 500.0}
    for x in ("pinned:a", "split")
]
RATIO = {"session": "mixed", "against": "backbone", "batch": 1, "ratio": 0.3, "low": 0.25}
REPORT = {
    "bundle": "elsewhere.prunion",
    "trunk_hash": "ab",
    "rows": ROWS,
    "comparisons": [{**RATIO, "high": 0.35, "verdict": "faster"}],
    "fresh": [
        {"session": x, "batch": 1, "load_ms": 5.0, "first_call_ms": 1.0, "peak_rss_bytes": 2**27}
        for x in ("mixed", "backbone")
    ],
    "file_bytes": {"model.onnx": 1_000_000},
    "rival_bytes": {"backbone": 4_000_000},
    "machine": {"cpu": "one", "cores": 2},
    "slowed_down": "governor powersave",
    "notes": ["blocked: none"],
}
SCENARIO = {
    "bundle": "elsewhere.prunion",
    "trunk_hash": "ab",
    "scenario": "server",
    "asked": "http://127.0.0.1:8000",
    "driver": "LoadGen",
    "samples": 1,
    "queries": 300,
    "latency_ms": 12.0,
    "percentile": 99,
    "samples_per_second": 250.0,
    "bound_ms": 15.0,
    "valid": True,
    "machine": {"cpu": "one"},
}


def test_what_was_measured_elsewhere_is_told_whole() -> None:
    """By the network, not by a path on the machine that measured; rivals and verdicts too."""
    known = [replace(subject(["a"]), trunk_hash="ab")]
    for value in (REPORT, SCENARIO):
        known = with_file(known, Path("bench.json"), value)
    assert list(known[0].milliseconds().values()) == [2.0], "own weights are split"
    page = html_page(known, [], [{}])
    for told in ("backbone", "0.250 … 0.350", "faster", "128", "4.0", "p99 under 15 ms", "LoadGen"):
        assert f"{told}</td>" in page, told
    assert measured_notes(REPORT)[0] == "cpu one, cores 2"
    assert "may be slowed down: governor powersave" in page
    older = {key: REPORT[key] for key in ("bundle", "rows", "machine")}
    assert list(measured_tables(older)) == ["Measured"]


def test_times_of_other_graphs_and_machines_stand_apart() -> None:
    """An INT8 graph's milliseconds stood beside the fp32 graph's accuracy and bytes."""

    def timed(precision: str, cpu: str, ms: float) -> dict[str, Any]:
        row = {**REPORT["rows"][0], "session": "mixed", "batch": 1}
        row["timing"] = {**row["timing"], "p50_ms": ms}
        asked = {"precision": precision, "backend": "cpu", "domains": "mixed", "threads": 1}
        asked["providers"] = {"mixed": "CPUExecutionProvider"}
        machine = {"cpu": cpu, "threads": 1}
        return {**REPORT, "rows": [row], "asked": asked, "machine": machine}

    one = subject(["a"], measured=[timed("int8", "x", 0.4), timed("fp32", "x", 4.0)])
    other = subject(["a"], measured=[timed("fp32", "x", 3.0), timed("fp32", "y", 1.0)])
    head, first, second = _overview([one, other])
    times = [i for i, name in enumerate(head) if name.startswith("ms, 1 image")]
    assert [head[i] for i in times] == [
        f"ms, 1 image ({x}, CPU, 1 thread, {y})"
        for x, y in (("int8", "x"), ("fp32", "x"), ("fp32", "y"))
    ]
    assert [first[i] for i in times] == ["0.40", "4.00", "-"]
    assert [second[i] for i in times] == ["-", "3.00", "1.00"]
    chart = next(x for x in frontier_charts([one, other]) if x.name == "frontier-latency")
    assert "fp32, CPU, 1 thread, x" in str(chart.rows) + chart.alt
    assert "the int8 graph, of all domains, by CPU" in str(measured_notes(one.measured[0]))


def test_a_session_is_loaded_from_one_graph_of_its_bundle() -> None:
    files = {"model.onnx": 4_000_000, "model.int8.onnx": 1_000_000, "domains/a.safetensors": 50_000}
    fresh = {"batch": 1, "load_ms": 1.0, "first_call_ms": 1.0, "peak_rss_bytes": 1}
    report = {
        **REPORT,
        "file_bytes": files,
        "rival_bytes": {"backbone": 9_000_000},
        "fresh": [{**fresh, "session": x} for x in ("mixed", "backbone", "openvino")],
        "asked": {"precision": "int8", "backend": "cpu", "domains": "mixed", "providers": {}},
    }
    rows = measured_tables(report)["In a process of its own"]
    assert [row[-1] for row in rows[1:]] == ["1.1", "9.0", "-"]


FIGURES: dict[str, Any] = {
    "bundle": "x.prunion",
    "domain": "a",
    "precision": "fp32",
    "images": 4,
    "accuracy": 0.75,
    "top5": 1.0,
    "calibration_error": 0.1,
    "classes": [
        {"name": "yes", "images": 4, "recall": 0.75, "precision": 1.0},
        {"name": "no", "images": 0, "recall": None, "precision": 0.0},
    ],
    "confusion": [[0, 0, 3], [0, 1, 1]],
    "calibration": [{"images": 4, "accuracy": 0.75, "confidence": 0.8}],
}


@pytest.mark.parametrize(
    "change",
    [
        {"accuracy": float("nan")},
        {"accuracy": 1.5},
        {"top5": -0.1},
        {"calibration_error": float("inf")},
        {"confusion": [[-1, 0, 3]]},
        {"confusion": [[0, -1, 3]]},
        {"confusion": [[0, 99, 3]]},
        {"confusion": [[0, 0, -3]]},
        {"confusion": [[0, 0, 5]]},
        {"classes": [{**FIGURES["classes"][0], "recall": float("nan")}]},
        {"calibration": [{**FIGURES["calibration"][0], "confidence": float("nan")}]},
        {"right_bits": ""},
    ],
)
def test_answers_that_cannot_be_are_named(tmp_path: Path, change: dict[str, Any]) -> None:
    """A place below 0 was counted from the end, and NaN stood on the page."""
    check_answers(FIGURES)
    path = tmp_path / "eval.json"
    path.write_text(json.dumps({**FIGURES, **change}))
    with pytest.raises(InputError, match=r"eval\.json is damaged .*: write it again"):
        read_subjects([path])


def test_pictures_have_names_that_no_two_have() -> None:
    """A number at the end of a name is part of a domain's name as well."""
    own = {name: {**FIGURES, "domain": name} for name in ("a", "a-4", "A")}
    network = subject(["a", "a-4", "A"], figures=own, evaluations=[FIGURES] * 4)
    names = [chart.name for charts in charts_of(network).values() for chart in charts]
    assert len({name.casefold() for name in names}) == len(names) > 3 * 7
    assert {"confusion-a", "confusion-a-4"} < set(names), "the run's own keep theirs"


@pytest.mark.parametrize("asked", [{}, {"precision": "fp32", "providers": 3}])
def test_a_measurement_that_lacks_what_is_shown_is_named(tmp_path: Path, asked: Any) -> None:
    path = tmp_path / "bench.json"
    path.write_text(json.dumps({**REPORT, "asked": asked}))
    with pytest.raises(InputError, match=r"bench\.json is damaged .*: write it again"):
        read_subjects([path])
