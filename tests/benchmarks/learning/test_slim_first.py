"""Torch-Pruning's importances of a pretrained backbone's channels."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torchvision.models import resnet18

from prunion.benchmarks.learning.plan.slim_first import SlimFirst, slim_worth
from prunion.trainer.config import BackboneConfig, InputConfig
from prunion.trainer.network import build_network

pytest.importorskip("torch_pruning", reason="needs torch-pruning: pip install 'prunion[bench]'")


@pytest.mark.parametrize("importance", ["magnitude", "taylor", "batchnorm"])
def test_every_channel_is_ranked(
    tmp_path: Path, importance: Literal["magnitude", "taylor", "batchnorm"]
) -> None:
    """A channel without weights, here the second of the second layer, is worth the least."""
    torch.manual_seed(0)
    model = resnet18()
    with torch.no_grad():
        model.layer1[0].conv1.weight[1] = 0
        model.layer1[0].conv2.weight[:, 1] = 0
        model.layer1[0].bn1.weight[1] = 0
    path = tmp_path / "weights.pt"
    torch.save(model.state_dict(), path)
    backbone = BackboneConfig("resnet18", weights=str(path), cut="layer1")
    shape = InputConfig(32)
    table = build_network(backbone, shape.size, [2]).units.table
    units = table.slots["layer1.0.conv1.weight", 0]
    for scope in ("global", "uniform"):
        worth = slim_worth(SlimFirst(importance, scope), backbone, shape)  # type: ignore[arg-type]
        assert worth.shape == (table.count,)
        assert worth.min() >= 0
        assert worth[units].argmin() == 1
    for members in table.widths:  # uniform: ranks, the same in every group
        assert np.sort(worth[members])[-1] == 1
