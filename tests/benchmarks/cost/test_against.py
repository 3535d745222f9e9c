"""The tables of rivals are measured row by row, and what is claimed is reckoned from them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from prunion.benchmarks.cost import against
from prunion.benchmarks.cost.against import Case, claim_lines, main, measure, table_lines
from prunion.benchmarks.cost.agreement import agreement

SMALL = Case("resnet18", "torchvision", 32, 0.25, 2, ("separate",))


def report(rate: float, size: int) -> dict:
    timing = {"p50_ms": 1.0}
    rows = [
        {"session": name, "batch": 8, "timing": timing, "images_per_second": images}
        for name, images in (("mixed", 2.0), ("blocked", 3.0 * rate), ("separate", rate))
    ]
    fresh = [
        {"session": name, "peak_rss_bytes": peak << 20, "packages_rss_bytes": 10 << 20}
        for name, peak in (("mixed", 20), ("separate", 90))
    ]
    return {
        "rows": rows,
        "fresh": fresh,
        "comparisons": [],
        "file_bytes": {"model.onnx": 800, "domains/a": 200},
        "rival_bytes": {"separate": size},
        "notes": ["a note"],
        "machine": {},
    }


def test_claims_follow_from_a_row() -> None:
    (line,) = claim_lines({"case": "x", "report": report(5.0, 20_000)})
    assert line == (
        "x: 0.0500 (1/20) of separate networks' file bytes (its graph, which holds all tables that "
        "its packs have, 1/25), 0.125 (1/8) of their memory, 3.00 times their throughput on mixed "
        "batches of 8"
    )


def test_rows_that_are_there_are_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fake(case: Case, *_: object) -> dict:
        asked.append(case.name)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return {"case": case.name, "share": case.share, "report": report(5.0, 20_000)}

    monkeypatch.setattr(against, "measure", fake)
    place = tmp_path / "rows.jsonl"
    assert CliRunner().invoke(main, ["-o", str(place)]).exit_code == 130, "interrupted"
    done = CliRunner().invoke(main, ["-o", str(place)])
    assert done.exit_code == 0, done.output
    assert sorted(asked) == sorted([x.name for x in against.CASES] + [asked[1]])
    assert "| blocked | 8 | 1.000 | 15.0 |" in done.stdout
    assert done.stdout.count("1/20) of separate networks' file bytes") == len(against.CASES)
    other = CliRunner().invoke(main, ["-o", str(place), "--threads", "2"])
    assert other.exit_code == 1
    assert "was made with threads 1, and 2 is asked for: give what it was" in other.output


@pytest.mark.slow
def test_a_row_is_measured() -> None:
    row = json.loads(json.dumps(measure(SMALL, 0.05, 1, classes=5)))
    assert row["share"] == pytest.approx(0.25, abs=0.05)
    text = "\n".join([*table_lines(row), *claim_lines(row)])
    assert "| separate | 8 | " in text
    assert "times their throughput" in text


@pytest.mark.slow
def test_bench_agrees_with_onnxruntimes_own_profile(tmp_path: Path) -> None:
    from prunion.benchmarks.random_bundle import random_bundle
    from prunion.runtime.graph import pin_pack
    from prunion.runtime.model import load

    model = load(random_bundle(tmp_path / "x.prunion", "resnet18", 2, size=64), "cpu", threads=1)
    graph = pin_pack(model.sessions.graph.read(), model.bundle.pack("d0"))
    found = agreement("resnet18", graph, model.sessions.form.noise(8), 1.0, tmp_path)
    assert found.p50 == pytest.approx(found.profiled_p50, rel=0.05)
    assert found.overhead < 0.02
