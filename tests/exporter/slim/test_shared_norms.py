"""A BatchNorm that is called at several places stands in the bank once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from prunion.exporter.graph import onnx_graph, verify_export
from prunion.exporter.slim import fold_domain, slim_network
from prunion.trainer.cost.counted import bytes_pricer
from tests.exporter.slim.test_network import switch_off
from tests.support.networks.small import domain_net

WIDTH, TIMES = 64, 4


class Recursive(nn.Module):
    """One block many times."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH)
        self.conv = nn.Conv2d(WIDTH, WIDTH, 1, bias=False)
        self.norm = nn.BatchNorm2d(WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn(self.stem(x)).relu()
        for _ in range(TIMES):
            x = x + self.norm(self.conv(x)).relu()
        return x.mean((2, 3))


class OfMapsAndMeans(nn.Module):
    """A norm that takes maps, then what they are pooled to, and maps again."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 8)
        self.after, self.norm = nn.Conv2d(8, 8, 1), nn.SyncBatchNorm(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.conv(x))
        gate = self.norm(self.fc(x.mean((2, 3))))[..., None, None]
        return self.norm(self.after(x * gate)).relu().mean((2, 3))


def test_its_columns_stand_in_the_bank_once() -> None:
    net = domain_net(Recursive(), (3, 40, 7))
    slim = slim_network(net)
    wanted = [(layer, kind) for layer in ("bn", "norm") for kind in ("scale", "shift")]
    assert [(entry.layer, entry.kind) for entry in slim.entries] == wanted
    every = np.ones(net.units.table.count, dtype=bool)
    assert onnx_graph(slim, 8, 8).ByteSize() <= bytes_pricer(net).of(every)


def test_maps_and_what_is_pooled_go_through_one(tmp_path: Path) -> None:
    net = switch_off(domain_net(OfMapsAndMeans(), (3, 5)))
    slim, images = slim_network(net), torch.randn(5, 3, 8, 8)
    onnx.save(onnx_graph(slim, 8, 8), tmp_path / "model.onnx")
    assert verify_export(net, slim, tmp_path / "model.onnx", images, ["a", "b"]).worst < 1e-5
    one = switch_off(domain_net(OfMapsAndMeans(), (4,)))
    with torch.no_grad():
        expected = one.logits(images, torch.zeros(5, dtype=torch.int64))
        torch.testing.assert_close(fold_domain(slim_network(one))(images), expected)
