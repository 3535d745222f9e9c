"""`prunion verify` makes the sessions that a runtime cuts to a domain's channels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prunion.exporter.bundle import export_bundle
from prunion.exporter.options import ExportOptions
from prunion.exporter.verify import cut, verify_bundle
from prunion.exporter.verify.cut import MADE_UP
from prunion.runtime.bundle import Pack
from prunion.runtime.errors import UnsupportedGraphError
from prunion.runtime.graph import GraphForm, pin_form
from tests.support.networks.drawn import drawn_checkpoint


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of two domains that use other halves of its channels."""
    folder = tmp_path_factory.mktemp("halves")
    export_bundle(
        drawn_checkpoint(folder, "bap", used=0.5), folder / "b.prunion", ExportOptions(fp16=True)
    )
    return folder / "b.prunion"


def test_every_domain_is_cut_and_answers_as_before(halves: Path) -> None:
    report = verify_bundle(halves)
    assert report.problems == report.notes == ()
    found = [(x.graph, x.domain) for x in report.compared if "cut from" in x.against]
    assert found == [(g, d) for g in ("fp32", "fp16") for d in ("warm", "cold", *MADE_UP)]


def test_a_cut_that_takes_the_wrong_channels_is_found(
    halves: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(graph: bytes, form: GraphForm, pack: Pack, *cut: Any) -> bytes:
        return pin_form(graph, form, pack, *(cut and (cut[0], np.roll(cut[1], 1))))

    monkeypatch.setattr(cut, "pin_form", wrong)
    problems = verify_bundle(halves).problems
    assert len(problems) == 8 and all("the graph that it is cut from" in x for x in problems)


def test_a_cut_graph_that_cannot_run_is_a_problem(
    halves: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(graph: bytes, *args: Any) -> bytes:
        return graph[:100] if len(args) > 2 else pin_form(graph, *args)

    monkeypatch.setattr(cut, "pin_form", broken)
    problems = verify_bundle(halves).problems
    assert len(problems) == 8
    assert problems[0].startswith(
        "fp32 graph, domain warm, cut to its channels: ONNX Runtime refuses it: "
    )


def test_a_graph_that_cannot_be_cut_is_a_note(
    halves: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> bytes:
        raise UnsupportedGraphError("Det of units is not known")

    monkeypatch.setattr(cut, "pin_form", refuses)
    report = verify_bundle(halves)
    assert report.problems == ()
    said = "its domains are answered in the union's width: Det of units is not known"
    assert report.notes == (f"fp32: {said}", f"fp16: {said}")
