"""Parameters as the papers' tables print them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import get_model

from prunion.trainer.backbone import paper_net
from prunion.trainer.methods import Sizes, params_ratio

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
        net = paper_net(name) if name.startswith("wrn") else get_model(name, weights=None)
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
