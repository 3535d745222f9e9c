"""A budget of slices is of those in use; one that holds no network is refused, a dead one told."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prunion.exporter.bundle import export_bundle
from prunion.exporter.options import ExportOptions
from prunion.exporter.verify import verify_bundle
from prunion.runtime.base import json_of
from prunion.runtime.bundle import open_bundle
from prunion.runtime.errors import BudgetError
from prunion.runtime.measure import Answers
from prunion.trainer.config import load_config
from prunion.trainer.data import Domain, open_domains
from prunion.trainer.run import check_run, train_run
from prunion.trainer.run.record import tell_alike
from prunion.trainer.score.pruning import read_pruning
from tests.support.tiny_run import tiny_run

pytestmark = pytest.mark.thorough

SLICES = ["train.granularity=slice", "train.trunk=frozen"]
# resnet18 up to its first stage: 7×7 of the stem, 3×3 of four convolutions of 64 channels.
LEAST, STAGE = 49 + 4 * 9, 64 * 64 * 9


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["budget.limit=84"], f"of every layer a slice\\) needs {LEAST} params: give at least 85"),
        (
            ["budget.limit=0.2", "train.method=ba2", 'backbone.keep=["layer1.0.conv1"]'],
            f"all of keep = layer1.0.conv1, of every other layer a slice\\) needs "
            f"{STAGE + LEAST - 9:,} params: give at least 0.2355",
        ),
    ],
)
def test_what_no_network_fits_is_refused_at_the_start(
    tmp_path: Path, changes: list[str], said: str
) -> None:
    config = load_config(tiny_run(tmp_path), [*SLICES, *changes])
    with pytest.raises(BudgetError, match=said):
        train_run(config, tmp_path / "out")
    fits = "budget.limit=90" if changes == ["budget.limit=84"] else "budget.limit=0.9"
    found = check_run(load_config(tiny_run(tmp_path), [*SLICES, *changes, fits]))
    assert said.endswith(f"at least {found.budget['least']}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("method", "limit"), [("bap", 0.3), ("bap", 30000), ("ba2", 0.3)])
def test_the_budget_is_of_the_slices_in_use(tmp_path: Path, method: str, limit: float) -> None:
    """The graph keeps nearly every weight: it is not what was asked for, learned and cut."""
    changes = [*SLICES, f"train.method={method}", f"budget.limit={limit}", "train.switch_lr=1e-3"]
    result = train_run(load_config(tiny_run(tmp_path), changes), tmp_path / "out")
    most, whole = (limit, 1.0) if limit < 1 else (limit / result.params[0], result.params[0])
    share, lines = result.budget["value"] / whole, str(result).splitlines()
    assert result.budget["slices"] and result.params[1] > 0.9 * result.params[0]
    if method == "bap":
        assert result.budget["met"] and most - 0.001 < share <= most < result.uncut
        assert any("of the slices in use met (" in line for line in lines)
    else:  # each domain's own slices are within it; what they make together is told
        assert result.budget["met"] is (share <= most) and share <= 2 * most
    logged = [json_of(x) for x in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    costs = [line["cost"] for line in logged if "cost" in line]
    assert costs[-1] == pytest.approx(share) and len(set(costs)) > 2
    pruning = read_pruning(tmp_path / "out")
    assert pruning is not None and pruning.kept == pytest.approx(share)
    assert pruning.lead == "learning"
    for name, options in (
        ("all", ExportOptions()),
        ("alone", ExportOptions(specialise="warm")),
    ):
        path = tmp_path / f"{name}.prunion"
        budget = export_bundle(tmp_path / "out", path, options)["budget"]
        assert verify_bundle(path).problems == ()
        assert budget["slices"] and budget["value"] / whole <= share
        assert budget["met"] or method == "ba2"
        if name == "all":
            assert budget == result.budget
        wrong = {**budget, "value": budget["value"] * 0.9}
        assert told(path, wrong, "params are .* the manifest's budget says")
        kind = {**budget, "kind": "macs", "value": 0.1, "met": True}
        assert told(path, kind, "said to be of slices, which no domain of it chose")
        too_much = {**budget, "value": 2 * result.params[0] / whole, "met": False}
        assert told(path, too_much, "the manifest's budget says")
        if name == "all":
            lied = {**budget, "met": not budget["met"]}
            assert told(path, lied, "the manifest says the budget is")
        if name == "all" and limit < 1:  # an earlier prunion counted what the graph holds
            params = open_bundle(path).manifest.params["exported"]
            before = {**budget, "value": params / result.params[0], "met": False}
            before.pop("slices")
            assert not told(path, before, ".")


def told(bundle: Path, budget: dict[str, Any], said: str) -> bool:
    """Whether `prunion verify` says so of a bundle whose manifest has this budget."""
    manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
    (bundle / "manifest.json").write_text(json.dumps({**manifest, "budget": budget}), "utf-8")
    problems = verify_bundle(bundle).problems
    (bundle / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    return any(re.search(said, line) for line in problems)


def answers(confidences: list[float]) -> Answers:
    logits = np.array([[np.log(p), np.log(1 - p)] for p in confidences], np.float64)
    return Answers.of(logits, np.zeros(len(confidences), np.int64))


def test_an_answer_that_no_image_changes_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = load_config(tiny_run(tmp_path))
    domains: list[Domain] = open_domains(config.domains, 0)
    tell_alike({0: answers([0.6, 0.7]), 1: answers([0.8])}, domains, config)
    assert not caplog.text
    tell_alike({0: answers([0.6, 0.7]), 1: answers([0.8, 0.8])}, domains, config)
    assert "domain cold: every test image got the very same answer" in caplog.text
    assert "warm" not in caplog.text
