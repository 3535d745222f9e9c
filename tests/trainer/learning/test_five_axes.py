"""Networks with parameters of five axes train as others do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from prunion.benchmarks.cost.train_step import RandomBatches
from prunion.exporter.slim import slim_network
from prunion.trainer.config import BudgetConfig, TrainConfig, load_config
from prunion.trainer.cost import make_budget, make_pricer
from prunion.trainer.data import Batch
from prunion.trainer.learning import Training
from prunion.trainer.processes.device import channels_last
from tests.support.networks.small import Plain, domain_net
from tests.support.tiny_run import tiny_run

CLASSES = (3, 5)


class OneSlice(Plain):
    """A volume one image deep."""

    def __init__(self) -> None:
        super().__init__()
        self.conv2 = nn.Conv3d(6, 10, (1, 3, 3), padding=(0, 1, 1))
        self.bn2 = nn.BatchNorm3d(10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.conv1(x)).relu().unsqueeze(2)
        return self.bn2(self.conv2(x)).relu().squeeze(2).mean((2, 3))


class ScaledGroups(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(1, 2, 3, 1, 1) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = (x.unflatten(1, (2, 3)) * self.scale).flatten(1, 2)
        return self.bn2(self.conv2(x)).relu().mean((2, 3))


@pytest.mark.parametrize("model", [OneSlice, ScaledGroups])
def test_every_phase_takes_a_step(model: type[nn.Module], tmp_path: Path) -> None:
    net = domain_net(model(), CLASSES)
    train = TrainConfig(warmup=1, ramp=1, settle=1)
    config = load_config(tiny_run(tmp_path))
    config = replace(config, train=train, budget=BudgetConfig(0.7, round_to=1))
    budget = make_budget(config.budget, make_pricer(config.budget, net))
    step = tuple(
        Batch(domain, torch.randn(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64))
        for domain in (0, 1)
    )
    names = tuple(tuple("abcde"[:count]) for count in CLASSES)
    batches = RandomBatches((step,), names, (4, 4))
    training = Training(config, net, batches, budget)  # type: ignore[arg-type]
    for _ in range(3):
        training.run_epoch(lambda figures: None)
    assert training.phase == "settle"
    net = training.net.eval()
    images, domains = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 1, 0])
    with torch.no_grad():
        sliced = slim_network(net).logits(images, domains)
        torch.testing.assert_close(sliced, net.logits(images, domains), rtol=1e-4, atol=1e-5)


def test_only_maps_are_laid_out_channels_last() -> None:
    net = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv3d(4, 8, 3), nn.Linear(4, 8))
    channels_last(net)
    assert net[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert all(layer.weight.is_contiguous() for layer in net[1:])
