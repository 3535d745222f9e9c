"""Sweeps of slices, and of finished runs whose files are damaged."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from prunion.runtime.errors import BudgetError, PrunionError
from prunion.trainer.config import load_config
from prunion.trainer.learning import Training
from prunion.trainer.run import train_run, train_sweep
from prunion.trainer.run.sweep.branches import Shared
from tests.trainer.run.test_sweep import SHORT, checkpoint
from tests.trainer.tiny_run import tiny_run


def test_slices_pay_from_their_first_step_and_share_none(tmp_path: Path) -> None:
    """The higher budget's warm-up was charged with the lower one's limit."""
    keys = {"warmup": 2, "ramp": 1, "settle": 1, "switch_lr": 1e-3}
    run_file = tiny_run(tmp_path, **keys, granularity='"slice"', trunk='"frozen"')
    configs = [load_config(run_file, [f"budget.limit={limit}"]) for limit in (0.3, 0.6)]
    for shared in get_args(Shared):
        train_sweep(configs, tmp_path / shared, shared=shared)
    alone = [train_run(config, tmp_path / f"alone{i}") for i, config in enumerate(configs)]
    for shared in get_args(Shared):
        for run, limit in zip(alone, (0.3, 0.6), strict=True):
            place = tmp_path / shared / f"seed-3-budget-{limit}"
            assert checkpoint(place) == checkpoint(run.folder)
    low = load_config(run_file, ["budget.limit=84"])
    with pytest.raises(BudgetError, match="give at least 85"):
        train_sweep([configs[0], low], tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("record.json", "{}", "holds no result"),
        ("record.json", '{"result": {"accuracy": {}}}', "without what a sweep's table tells"),
        ("checkpoint/checkpoint.json", "[]", "holds no config"),
    ],
)
def test_a_damaged_finished_run_is_told_before_others_are_trained(
    tmp_path: Path, file: str, text: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_file = tiny_run(tmp_path, **SHORT)
    configs = [load_config(run_file, [f"budget.limit={limit}"]) for limit in (0.7, 0.4)]
    train_sweep(configs[:1], tmp_path / "out")
    place = tmp_path / "out" / "seed-3-budget-0.7"
    (place / file).write_text(text)
    monkeypatch.setattr(Training, "run_epoch", lambda *_: pytest.fail("it trained"))
    with pytest.raises(PrunionError, match=said):
        train_sweep(configs, tmp_path / "out", resume=True)
