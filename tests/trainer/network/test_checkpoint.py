"""A sweep's folder is no run: whoever asks for its checkpoint is told the runs in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunion.runtime.errors import CheckpointError
from prunion.trainer.network import load_checkpoint


def test_a_sweeps_runs_are_named(tmp_path: Path) -> None:
    for seed in range(6):
        place = tmp_path / f"seed-{seed}-budget-0.5" / "checkpoint"
        place.mkdir(parents=True)
        (place / "checkpoint.json").write_text("{}")
    told = r"holds several runs, seed-0-budget-0.5, .* and 2 more: give one of them"
    with pytest.raises(CheckpointError, match=told):
        load_checkpoint(tmp_path)
