"""What a run tells of single slices: whose others chose too, and how many came back on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prunion.trainer.config import load_config
from prunion.trainer.learning import Training
from prunion.trainer.network import load_checkpoint
from prunion.trainer.run import train_run
from tests.support.tiny_run import tiny_run


def test_sharing_and_returns_are_of_the_slices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were told of channels, which are all on: 100 % shared, none ever back."""
    back, move = [0], Training._move

    def bits(self: Training) -> torch.Tensor:
        assert self.net.adapter is not None
        return torch.cat([x.flatten() for x in self.net.adapter.slices().values()])

    def moved(self: Training, domains: Any) -> None:
        before = bits(self)
        move(self, domains)
        back[0] += int((bits(self) & ~before).sum())

    monkeypatch.setattr(Training, "_move", moved)
    keys = {"granularity": '"slice"', "trunk": '"frozen"', "switch_lr": 1e-3, "settle": 0}
    config = load_config(tiny_run(tmp_path, **keys))
    result = train_run(config, tmp_path / "out")
    assert result.returned == back[0] > 0
    adapter = load_checkpoint(tmp_path / "out").net.adapter
    assert adapter is not None
    on = np.concatenate([x.flatten(1).numpy() for x in adapter.slices().values()], 1)
    assert 1 > result.shared == pytest.approx(on.all(0).sum() / on.any(0).sum())
    both = (on[0] & on[1]).sum()
    assert result.sharing_matrix["warm"]["cold"] == pytest.approx(both / on[0].sum())
    assert "of the slices in use were chosen by every domain" in str(result)
    assert "of the slices of" in str(result) and result.sharing().of == "slices"
