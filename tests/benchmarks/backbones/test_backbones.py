"""The backbone table: rows are kept, gone on with, and refusals told; the page agrees."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from click.testing import CliRunner

from prunion.benchmarks.backbones import measure as measure_module
from prunion.benchmarks.backbones.measure import NETWORKS, backbones_command, measure
from prunion.benchmarks.backbones.rows import (
    BackboneRow,
    DensityCase,
    read_rows,
    row_line,
    table,
)

CASE = DensityCase(0.5, 10, 250, 5000, 1e-6, 2e-6, 1.0, 3e-5)
ROW = BackboneRow("net", 96, 20, 1000, 10000, 2.0, [CASE])
REFUSED = BackboneRow("odd", 96, refused="node softmax: a|b is unknown")
PAGE = Path(__file__).parents[3] / "docs" / "backbones.md"


def test_a_row_shows_shares_and_the_largest_errors() -> None:
    text = table([ROW, REFUSED])
    assert "| net | 96 | 20 | 0.00 | 0.250 | 0.0 | 0.500 | 1e-06 | 2e-06 | 3e-05 | 3 |" in text
    assert "not installed" not in text
    assert "error 3.0e-05" in row_line(ROW)


def test_refused_networks_have_a_table_of_their_own() -> None:
    above, below = table([ROW, REFUSED]).split("| refused | reason |")
    assert "odd" not in above
    assert "| odd | node softmax: a\\|b is unknown |" in below
    assert "refused" not in table([ROW])


def test_without_openvino_its_column_is_empty_and_says_so() -> None:
    row = replace(ROW, cases=[replace(CASE, masked_openvino=None)])
    assert "| 1e-06 | 2e-06 | – | 3 |" in table([row])
    assert "OpenVINO is not installed (pip install " in table([row])


def test_a_density_that_was_only_sliced_hides_no_error() -> None:
    sliced = replace(CASE, masked_sliced=5e-6, masked_onnx=None, masked_openvino=None)
    text = table([replace(ROW, cases=[CASE, sliced])])
    assert "| 5e-06 | 2e-06 | 3e-05 | 4 |" in text
    assert "not installed" not in text


def test_rows_already_there_are_not_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([asdict(ROW), asdict(REFUSED)]))
    assert read_rows(str(path)) == [ROW, REFUSED]
    done = CliRunner().invoke(backbones_command, ["--only", "net,odd", "--json", str(path)])
    assert done.exit_code == 0, done.output
    assert done.output == ""
    shown = CliRunner().invoke(backbones_command, ["--json", str(path), "--markdown"])
    assert shown.output.strip() == table([ROW, REFUSED])


def test_a_network_that_is_named_twice_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure_module, "measure", lambda name, exported: replace(ROW, name=name))
    done = CliRunner().invoke(backbones_command, ["--only", "net,odd,net"])
    assert [x.split()[0] for x in done.output.splitlines()] == ["net", "odd"]


def test_every_network_of_the_list_has_a_name_that_its_library_knows() -> None:
    import timm
    import torchvision

    assert len(NETWORKS) == len(set(NETWORKS))
    known = {
        "": set(torchvision.models.list_models(torchvision.models)),
        "timm": set(timm.list_models()),
        "prunion": {"resnet26", "wrn28_4", "wrn28_4_preact"},
    }
    for name in NETWORKS:
        source, _, own = name.rpartition(":")
        assert own in known[source], name


def test_what_goes_wrong_in_a_library_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no decomposition\nand a page of reasons")

    monkeypatch.setattr("prunion.benchmarks.backbones.measure.domain_net", fails)
    assert measure("resnet18").refused == "fails: no decomposition"


def test_the_page_counts_its_rows_and_shows_no_wrong_answer() -> None:
    page = PAGE.read_text("utf-8").split("\n## The table\n")[1].split("\n## ")[0]
    lines = [x for x in page.splitlines() if re.match(r"\| [\w:]+ \| \d+ \| [\d,]+ \| ", x)]
    names = [line.split("|")[1].strip() for line in lines]
    assert set(names) <= set(NETWORKS)
    assert len(names) == len(set(names))
    for line in lines:
        sliced, onnx, openvino = line.split("|")[8:11]
        assert float(sliced) < 1e-4, line
        assert float(onnx) < 1e-4, line
        assert float(openvino) < 1e-3, line
    refused = page.split("| refused | reason |\n")[1].split("\n\n")[0].splitlines()[1:]
    assert {line.split("|")[1].strip() for line in refused} <= set(NETWORKS)
    stated = re.search(r"\*\*(\d+) networks answer right and (\d+) (?:is|are) refused\*\*", page)
    assert stated is not None
    assert (int(stated[1]), int(stated[2])) == (len(names), len(refused))


@pytest.mark.slow
def test_a_real_network_is_measured_and_another_refused(tmp_path: Path) -> None:
    row = measure("mobilenet_v3_small", (0.5, 0.7), (0.5,))
    assert not row.refused
    assert row.cases[0].params < row.params
    exported, sliced = row.cases
    assert exported.masked_onnx is not None
    assert max(exported.masked_sliced, exported.masked_onnx, sliced.masked_sliced) < 1e-4
    assert sliced.masked_onnx is None
    assert (exported.masked_openvino is None) == (find_spec("openvino") is None)
    assert (exported.masked_openvino or 0) < 1e-3
    assert "node" in measure("timm:convnextv2_atto").refused
