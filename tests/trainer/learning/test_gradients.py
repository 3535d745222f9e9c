"""Whatever learns has a gradient in every step: processes that share one wait for all of them."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from prunion.trainer.config import METHODS, Phase, load_config
from prunion.trainer.processes import ALONE
from prunion.trainer.run.start import begin
from tests.support.tiny_run import tiny_run

SLICES = {"granularity": '"slice"', "switch_lr": 0.002}
# Of these a step uses a part alone, so their gradients are sent behind it.
IN_PART = ("svd", "packnet")


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("bap", SLICES),
        ("ba2", SLICES),
        *(
            pytest.param(method, {}, marks=pytest.mark.slow)
            for method in METHODS
            if method not in IN_PART
        ),
        pytest.param("bap", {"adapter_rank": 2}, marks=pytest.mark.slow),
        pytest.param("bap", {"trunk_from": '"settle"'}, marks=pytest.mark.slow),
    ],
)
def test_whatever_learns_has_a_gradient_in_every_phase(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, more: dict[str, object]
) -> None:
    short = {"warmup": 1, "ramp": 1, "settle": 1, "method": f'"{method}"'}
    config = load_config(tiny_run(tmp_path, **{**short, **more}))
    training, _ = begin(config, tmp_path / "out", "cpu", ALONE)
    step, phases = training.optimiser.step, set()

    def checked() -> None:
        named = training.net.named_parameters()
        lacking = [name for name, p in named if p.requires_grad and p.grad is None]
        assert not lacking, training.phase
        phases.add(training.phase)
        step()

    monkeypatch.setattr(training.optimiser, "step", checked)
    while training.epoch < config.train.epochs:
        training.run_epoch(lambda figures: None)
    assert phases == set(get_args(Phase))
