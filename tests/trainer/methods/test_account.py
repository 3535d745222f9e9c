"""Parameters as the papers' tables print them."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import get_model

from prunion.trainer.backbone import PAPER_NETS, trace
from prunion.trainer.config import TrainConfig
from prunion.trainer.methods import Sizes, adapter_ratio, make_adapter, params_ratio
from prunion.trainer.network import DomainNet

# Network, domains, method, own BatchNorm: what the papers print, to their two digits.
PRINTED = [
    ("wrn28_4", 10, "piggyback", False, 1.28),
    ("wrn28_4", 10, "affine", True, 1.29),
    ("wrn28_4", 10, "finetune", True, 10.0),
    ("wrn28_4", 10, "feature", False, 1.0),
    ("resnet50", 6, "piggyback", False, 1.16),
    ("resnet50", 6, "piggyback", True, 1.17),
    ("resnet50", 6, "affine", True, 1.17),
    ("densenet121", 6, "piggyback", False, 1.15),
    ("densenet121", 6, "piggyback", True, 1.21),
    ("densenet121", 6, "affine", True, 1.21),
    ("vgg16", 6, "piggyback", False, 1.16),
    ("vgg16", 6, "affine", True, 1.16),
]


def sizes(name: str) -> Sizes:
    """Of a network without its classifier; VGG-16 with the two layers before it."""
    with torch.device("meta"):
        net = PAPER_NETS[name]() if name.startswith("wrn") else get_model(name, weights=None)
    layers = [m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    if not name.startswith("wrn"):
        layers = layers[:-1]
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    weights = sum(layer.weight.numel() for layer in layers)
    return Sizes(weights, 2 * sum(norm.num_features for norm in norms), len(layers))


@pytest.mark.parametrize(("name", "domains", "method", "own_norms", "printed"), PRINTED)
def test_the_printed_column(
    name: str, domains: int, method: Any, own_norms: bool, printed: float
) -> None:
    ratio = params_ratio(method, sizes(name), domains, own_norms=own_norms)
    assert ratio == pytest.approx(printed, abs=0.006)


def test_what_pruning_keeps_is_not_known_from_sizes() -> None:
    assert params_ratio("bap", Sizes(100, 10, 2), 4, own_norms=True) is None


# Settings of `[train]`: what the paper prints of ResNet-26 and ten domains, and what we compute.
PLACED = [
    ({"method": "parallel"}, 2.0, 2.000),
    ({"method": "parallel", "sites": "second"}, 1.5, 1.534),
    ({"method": "parallel", "adapters": "early"}, 2.0, 1.048),
    ({"method": "parallel", "adapters": "mid"}, 2.0, 1.190),
    ({"method": "parallel", "adapters": "late"}, 2.0, 1.762),
    ({"method": "svd"}, 1.5, 1.559),
    ({"method": "series"}, 2.0, 2.079),
    ({"method": "lora"}, None, 1.210),
]


@pytest.fixture(scope="module")
def resnet26() -> DomainNet:
    return DomainNet(trace(PAPER_NETS["resnet26"](), 32, 32), [2])


@pytest.mark.parametrize(("train", "printed", "computed"), PLACED)
def test_adapters_by_where_they_are_put(
    resnet26: DomainNet, train: dict[str, Any], printed: float | None, computed: float
) -> None:
    """Over the convolutions alone, as this paper counts: its own column has one digit or none."""
    layers = resnet26.units.table.layers
    # A copy: "series" writes itself into the graph.
    trunk = copy.deepcopy(resnet26.trunk)
    adapter = make_adapter(TrainConfig(**train), trunk, layers, 1)
    assert adapter is not None
    adapter.advance(dict(trunk.named_parameters()), 0, "settle")  # what "svd" compresses at
    weights = sum(math.prod(layer.shape) for layer in layers)
    assert weights == 5_806_944
    ratio = adapter_ratio(adapter, Sizes(weights, 0, 0), 10, own_norms=False)
    assert ratio == pytest.approx(computed, abs=0.001)


@pytest.mark.parametrize(
    ("domains", "bits"),
    [
        (2, 1),
        (6, 3),
        *(pytest.param(*x, marks=pytest.mark.thorough) for x in ((4, 2), (8, 3), (10, 4))),
    ],
)
def test_packnets_owners(resnet26: DomainNet, domains: int, bits: int) -> None:
    """Printed for six: 1.10, 1.11 and 1.09. The backbone is the first of the tasks."""
    assert bits == math.ceil(math.log2(domains))
    layers = resnet26.units.table.layers
    adapter = make_adapter(TrainConfig(method="packnet"), resnet26.trunk, layers, domains - 1)
    assert adapter is not None
    weights = sum(math.prod(layer.shape) for layer in layers)
    assert adapter_ratio(adapter, Sizes(weights, 0, 0), 10, own_norms=False) == 1 + bits / 32
