"""Limits that hold no network of slices are refused; a network that answers all alike is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from prunion.runtime.errors import BudgetError
from prunion.runtime.measure import Answers
from prunion.trainer.config import load_config
from prunion.trainer.data import Domain, open_domains
from prunion.trainer.run import train_run
from prunion.trainer.run.record import tell_alike
from tests.trainer.tiny_run import tiny_run

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
    assert not (tmp_path / "out").exists()


def answers(confidences: list[float]) -> Answers:
    logits = np.array([[np.log(p), np.log(1 - p)] for p in confidences], np.float64)
    return Answers.of(logits, np.zeros(len(confidences), np.int64))


def test_an_answer_that_no_image_changes_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    domains: list[Domain] = open_domains(load_config(tiny_run(tmp_path)).domains, 0)
    tell_alike({0: answers([0.6, 0.7]), 1: answers([0.8])}, domains)
    assert not caplog.text
    tell_alike({0: answers([0.6, 0.7]), 1: answers([0.8, 0.8])}, domains)
    assert "domain cold: every test image got the very same answer" in caplog.text
    assert "warm" not in caplog.text
