"""Bundles of several rows answer in turn, and are held against one of them."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from prunion.benchmarks.learning.latency import find_bundles, main, table
from prunion.exporter.bundle import export_bundle
from tests.support.networks.drawn import drawn_checkpoint

METHODS = ("norms", "piggyback", "parallel")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of rows, as the learning table leaves them."""
    folder = tmp_path_factory.mktemp("runs")
    for method in METHODS:
        row = folder / f"resnet18.{method}.seed0"
        row.mkdir()
        export_bundle(drawn_checkpoint(row, method), row / "model.prunion")
    (folder / "resnet18.taps.seed0").mkdir()  # not finished
    return folder


def test_bundles_are_timed_in_turn_and_held_against_one(runs: Path, tmp_path: Path) -> None:
    path = tmp_path / "latency.jsonl"
    options = ["--reference", "norms", "--seconds", "0.02", "-o", str(path)]
    done = CliRunner().invoke(main, [str(runs), *options])
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert {line["row"]: line["method"] for line in lines} == {x: x for x in METHODS}
    for line in lines:
        assert set(line["ms"]) == set(line["ratio"]) == {"one", "one x 8", "mixed x 8"}
        assert all(0 < least <= median for median, least in line["ms"].values())
        assert line["bytes"]["graph"] > line["bytes"]["packs"] > 0
        assert line["against"] == "norms"
        for case, (ratio, low, high) in line["ratio"].items():
            assert case != "one" or low is None or low <= ratio <= high  # few rounds: none
    own = next(line for line in lines if line["row"] == "norms")
    assert {ratio for ratio, _, _ in own["ratio"].values()} == {1.0}
    head, _, *rows = done.output.splitlines()
    assert head.startswith("| row | ms, one (of `norms`'s) | ")
    assert len(rows) == 3
    many = [{**line, "ratio": {key: [1.0, 0.9, 1.1] for key in line["ms"]}} for line in lines]
    assert "(1.00, 0.90 … 1.10)" in table(many)


def test_a_bundle_is_called_as_its_row(runs: Path, tmp_path: Path) -> None:
    row = runs / "resnet18.norms.seed0"
    assert find_bundles([row]) == {"norms": row / "model.prunion"}
    assert find_bundles([row / "model.prunion"]) == {"norms": row / "model.prunion"}
    other = tmp_path / "resnet18.norms.seed1"
    other.symlink_to(row)
    assert set(find_bundles([row, other])) == {"resnet18.norms.seed0", "resnet18.norms.seed1"}
    with pytest.raises(click.UsageError, match=r"two bundles are called resnet18.norms.seed0"):
        find_bundles([row, row])
    with pytest.raises(click.UsageError, match="neither a bundle nor a folder of runs"):
        find_bundles([tmp_path / "nothing"])
    done = CliRunner().invoke(main, [str(runs), "-o", str(tmp_path / "x.jsonl")])
    assert done.exit_code == 2
    assert "no bundle is called frozen-all: --reference norms | parallel | piggyback" in done.output
