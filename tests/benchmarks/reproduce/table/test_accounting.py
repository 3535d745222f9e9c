"""FLOP and Params of rows: of slices, of an only domain, and of lines from before."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunion.benchmarks.reproduce.settings import add_line, read_lines
from prunion.benchmarks.reproduce.table.accounting import figures_of
from prunion.exporter.bundle import export_bundle
from prunion.trainer.network import load_checkpoint
from tests.support.networks.drawn import drawn_checkpoint


def test_what_an_only_domain_stores_is_counted(tmp_path: Path) -> None:
    """Beside the source's trunk, which no run's file holds."""
    found = {}
    for method, keys in (("piggyback", {}), ("bap", {"granularity": '"slice"'})):
        checkpoint = drawn_checkpoint(tmp_path / method, method, domains=1, **keys)
        assert load_checkpoint(checkpoint).net.adapter is None
        found[method] = figures_of(load_checkpoint(checkpoint, merge=False))
    assert found["piggyback"].params == pytest.approx(1 + 1 / 32, abs=1e-3)
    assert found["bap"].flop == found["bap"].flop_union < 1 == found["bap"].flop_graph


@pytest.mark.parametrize("domains", [1, 2])
def test_a_row_and_its_manifest_have_one_figure_of_one_name(tmp_path: Path, domains: int) -> None:
    checkpoint = drawn_checkpoint(tmp_path, "bap", domains=domains, granularity='"slice"')
    paper = export_bundle(checkpoint, tmp_path / "bundle")["paper"]
    figures = figures_of(load_checkpoint(checkpoint, merge=False))
    assert (figures.flop, figures.flop_union) == (paper["flop"], paper["flop_union"])


def test_rows_of_before_say_nothing_of_slices_together(tmp_path: Path) -> None:
    """Their `flop_union` was the graph's."""
    line = {"key": "a", "accuracy": {}, "flop": 0.4, "flop_union": 0.99}
    add_line(tmp_path / "rows.jsonl", line)
    newer = {**line, "key": "b", "flop_union": 0.6, "flop_graph": 0.99}
    add_line(tmp_path / "rows.jsonl", newer)
    older, after = read_lines(tmp_path / "rows.jsonl")
    assert (older.get("flop_union"), older["flop_graph"]) == (None, 0.99)
    assert (after["flop_union"], after["flop_graph"]) == (0.6, 0.99)
