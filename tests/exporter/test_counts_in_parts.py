"""Networks that cut images into windows or tokens: counted as one image is run, by both sides."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from torch import nn
from torchvision.models import SwinTransformer, VisionTransformer

from prunion.exporter.counts import check_counts
from prunion.exporter.graph import onnx_graph
from prunion.exporter.slim import slim_network
from prunion.trainer.config import BackboneConfig, BackboneSource
from prunion.trainer.network import build_network
from tests.support.networks.counting import macs_by_running
from tests.support.networks.small import domain_net

pytestmark = pytest.mark.thorough

SIDE = 8


def tiny_mobilevit() -> nn.Module:
    blocks = pytest.importorskip("timm.models.mobilevit")
    return nn.Sequential(
        nn.Conv2d(3, 6, 1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        blocks.MobileVitBlock(6, 6, transformer_dim=8, transformer_depth=1, patch_size=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def tiny_vit() -> nn.Module:
    return VisionTransformer(SIDE, 4, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=16)


def tiny_swin() -> nn.Module:
    return SwinTransformer([2, 2], 8, [1, 1], [1, 2], [2, 2])


@pytest.mark.parametrize("make", [tiny_vit, tiny_swin, tiny_mobilevit])
def test_networks_that_cut_images_into_parts(make: Callable[[], nn.Module]) -> None:
    net = domain_net(make().eval(), (2, 3), SIDE)
    assert net.units.table.macs(np.ones(net.units.table.count, bool)) == macs_by_running(net, SIDE)
    slim = slim_network(net)
    check_counts(onnx_graph(slim, SIDE, SIDE), slim.table)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "source", "macs"),
    [
        ("swin_t", "torchvision", 736_763_904),
        ("mobilevit_xxs", "timm", 20_553_728),
        ("resnet18", "torchvision", 148_045_824),
        ("mobilenet_v2", "torchvision", 24_448_512),
    ],
)
def test_published_networks(name: str, source: BackboneSource, macs: int) -> None:
    """As hooks on the layers of a running network count them, at 64 px."""
    pytest.importorskip(source)
    net = build_network(BackboneConfig(name, source, weights="none"), (64, 64), [2, 3]).eval()
    assert net.units.table.macs(np.ones(net.units.table.count, bool)) == macs
    assert macs_by_running(net, 64) == macs
