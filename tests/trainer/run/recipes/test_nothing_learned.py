"""A run whose epochs leave nothing to cut or settle by is refused, not answered by chance."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from prunion.runtime.errors import ConfigError, UnsupportedGraphError
from prunion.trainer.config import load_config
from prunion.trainer.learning import Training
from prunion.trainer.processes import ALONE
from prunion.trainer.run import train_run
from prunion.trainer.run.start import begin
from tests.support.tiny_run import tiny_run

FROZEN = {"trunk": '"frozen"'}


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"method": '"svd"'}, 'method "svd" learns what it settles with'),
        ({"method": '"taps"'}, 'method "taps" learns'),
        ({"method": '"packnet"'}, "learns which weights a domain keeps"),
        ({"recipe": '"paper"', **FROZEN}, "the paper's switches learn"),
        ({"granularity": '"slice"', **FROZEN}, "in which slices learn"),
        ({"granularity": '"slice"', "method": '"ba2"', **FROZEN}, "in which slices learn"),
    ],
)
def test_settling_alone_is_refused(
    tmp_path: Path, keys: dict[str, object], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_file = tiny_run(tmp_path, warmup=0, ramp=0, settle=1, **keys)
    monkeypatch.setattr(Training, "run_epoch", lambda *_: pytest.fail("it trained"))
    with pytest.raises(ConfigError, match=said):
        train_run(load_config(run_file), tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Mixed(nn.Module):
    """Two ways at once, by a share that is used as it is and as what is left of one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)
        self.share = nn.Parameter(torch.tensor(0.3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        x = self.share * self.a(x) + (1 - self.share) * x
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize(
    ("keys", "goes_on"),
    [
        (FROZEN, True),
        ({"method": '"piggyback"'}, True),
        ({"method": '"finetune"'}, False),
        ({}, False),
    ],
)
def test_forms_that_nothing_teaches_are_no_reason_to_refuse(
    tmp_path: Path, keys: dict[str, object], goes_on: bool
) -> None:
    """Two forms of a parameter come apart where weights learn, and nowhere else."""
    run_file = tiny_run(tmp_path, **keys)
    text = run_file.read_text("utf-8").replace('cut = "layer1"\n', "")
    if "method" in keys:
        text = text.replace("limit = 0.5", "limit = 1.0")
    run_file.write_text(text, "utf-8")
    config = load_config(run_file)
    if goes_on:
        begin(config, tmp_path / "out", "cpu", ALONE, model=Mixed())
        return
    with pytest.raises(UnsupportedGraphError, match="parameter share is used in 2 forms"):
        begin(config, tmp_path / "out", "cpu", ALONE, model=Mixed())
