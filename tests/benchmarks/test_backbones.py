"""The backbone table: rows are kept, gone on with, and refusals told."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from click.testing import CliRunner

from prunion.benchmarks.backbones import BackboneRow, DensityCase, backbones_command, measure, table

CASE = DensityCase(0.5, 10, 250, 5000, 1e-6, 2e-6, 1.0)
ROW = BackboneRow("net", 96, 20, 1000, 10000, 2.0, [CASE])
REFUSED = BackboneRow("odd", 96, refused="node softmax: unknown")


def test_a_row_shows_shares_and_the_largest_errors() -> None:
    text = table([ROW, REFUSED])
    assert "| net | 96 | 20 | 0.00 | 0.250 | 0.0 | 0.500 | 1e-06 | 2e-06 | 3 |" in text
    assert "`odd` is refused: node softmax: unknown" in text


def test_rows_already_there_are_not_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([asdict(ROW), asdict(REFUSED)]))
    done = CliRunner().invoke(backbones_command, ["--only", "net,odd", "--json", str(path)])
    assert done.exit_code == 0, done.output
    assert done.output == ""
    shown = CliRunner().invoke(backbones_command, ["--json", str(path), "--markdown"])
    assert shown.output.strip() == table([ROW, REFUSED])


@pytest.mark.slow
def test_a_real_network_is_measured_and_another_refused(tmp_path: Path) -> None:
    row = measure("mobilenet_v3_small", (0.5,))
    assert not row.refused
    assert row.cases[0].params < row.params
    assert max(row.cases[0].masked_sliced, row.cases[0].masked_onnx) < 1e-4
    assert "layer_norm" in measure("convnext_tiny").refused
