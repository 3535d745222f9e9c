"""BatchNorm's statistics at a run's end are of the network that answers, however short it was."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from prunion.trainer.config import TrainConfig, load_config
from prunion.trainer.learning import Training
from prunion.trainer.learning.norms import RunNorms, estimate_norms
from prunion.trainer.network import DomainNorm
from prunion.trainer.run import train_run
from tests.support.tiny_run import tiny_run


def statistics(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in net.named_buffers() if "running_" in k}


@pytest.mark.parametrize(
    "keys",
    [{"average": 1.0}, {"order": '"batch"'}, {"method": '"series"', "norms": '"frozen"'}],
    ids=["joint", "batch", "series"],
)
def test_a_short_run_ends_with_statistics_that_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any]
) -> None:
    """A few steps move them by a tenth each: they were the backbone's, and fitted nothing."""
    runs: list[Training] = []
    start = Training.__init__

    def kept(self: Training, *args: object, **options: object) -> None:
        start(self, *args, **options)  # type: ignore[arg-type]
        runs.append(self)

    monkeypatch.setattr(Training, "__init__", kept)
    train_run(load_config(tiny_run(tmp_path, **{"ramp": 1, **keys})), tmp_path / "out")
    (run,) = runs
    found = statistics(run.net)
    torch.manual_seed(0)
    estimate_norms(run.net, run.batches.epoch(run.epoch, joint=True))
    again = statistics(run.net)
    for name in found:
        torch.testing.assert_close(found[name], again[name], rtol=0.2, atol=0.05)
    with run.fitted_norms():  # at the end they fit already
        assert all(torch.equal(v, again[k]) for k, v in statistics(run.net).items())


def norms_of(steps_per_epoch: int = 4, least: int = 4, **train: Any) -> RunNorms:
    batches = SimpleNamespace(steps_per_epoch=steps_per_epoch, least_per_epoch=least)
    zero, one = torch.zeros(2), torch.ones(2)
    net = DomainNorm(1, None, None, zero, one, 1e-5, torch.zeros(2).long().numpy())
    return RunNorms(net, batches, TrainConfig(**train), lambda: None)  # type: ignore[arg-type]


def test_steps_that_follow_bring_them() -> None:
    """As many as leave a hundredth of what they were before: runs of real length have them."""
    norms = norms_of()
    assert [norms.fit(step) for step in (0, 43, 44)] == [False, False, True]
    norms.fixed_at = 100
    assert [norms.fit(step) for step in (143, 144)] == [False, True]
    assert not norms.fit(160, turn=120)
    assert norms_of(accumulate=4).fit(11)
    assert [norms_of(least=2, order="batch").fit(step) for step in (86, 88)] == [False, True]
    frozen = norms_of()
    frozen.net.frozen = True  # type: ignore[assignment]
    assert frozen.fit(0)
