"""The papers' networks have the papers' sizes."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import nn

from prunion.runtime.errors import ConfigError
from prunion.trainer.backbone import PAPER_NETS, load_backbone
from prunion.trainer.channels import Units, find_units
from prunion.trainer.config import BackboneConfig

CONV_WEIGHTS = {"resnet26": 5_806_944, "wrn28_4": 5_839_280, "wrn28_4_preact": 5_839_280}
NORM_AFFINE = {"resnet26": 7_744, "wrn28_4": 8_096, "wrn28_4_preact": 7_200}


@pytest.mark.parametrize("name", PAPER_NETS)
def test_sizes_are_those_of_the_public_codes(name: str) -> None:
    net = PAPER_NETS[name]()
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(convs) == (25 if name == "resnet26" else 28)
    assert sum(m.weight.numel() for m in convs) == CONV_WEIGHTS[name]
    assert sum(m.weight.numel() + m.bias.numel() for m in norms) == NORM_AFFINE[name]


@functools.cache
def units(name: str, size: int) -> Units:
    backbone = load_backbone(BackboneConfig(name, "prunion", weights="none"), size, size)
    return find_units(backbone)


@pytest.mark.parametrize(
    ("name", "size", "millions"),
    [
        ("resnet26", 64, 853.1),
        pytest.param("resnet26", 72, 1079.7, marks=pytest.mark.slow),
        pytest.param("wrn28_4", 64, 847.2, marks=pytest.mark.slow),
        pytest.param("wrn28_4", 72, 1072.1, marks=pytest.mark.thorough),
    ],
)
def test_multiply_accumulates_are_those_published(name: str, size: int, millions: float) -> None:
    table = units(name, size).table
    everything = np.ones(table.count, dtype=bool)
    assert table.params(everything) == CONV_WEIGHTS[name]
    head = 256 * 1000  # the published figures count ImageNet's classifier
    assert (table.macs(everything) + head) / 1e6 == pytest.approx(millions, abs=0.06)


@pytest.mark.parametrize("name", PAPER_NETS)
def test_features_come_out(name: str) -> None:
    with torch.no_grad():
        assert PAPER_NETS[name]().eval()(torch.randn(2, 3, 64, 64)).shape == (2, 256)


def test_zero_padded_shortcuts_make_prefixes_of_one_stream() -> None:
    """The 32 channels of the first stream are the first 32 of the second, and so on."""
    slots = units("resnet26", 64).table.slots
    widest = slots["stages.2.0.conv2.weight", 0]
    assert len(set(widest.tolist())) == 256
    assert slots["conv.weight", 0].tolist() == widest[:32].tolist()
    assert slots["stages.1.0.conv2.weight", 0].tolist() == widest[:128].tolist()


def test_default_weights_are_refused() -> None:
    with pytest.raises(ConfigError, match="nobody publishes"):
        load_backbone(BackboneConfig("resnet26", "prunion"), 64, 64)


def test_an_unknown_name_is_refused_with_the_choices() -> None:
    with pytest.raises(ConfigError, match="wrn28_4_preact"):
        load_backbone(BackboneConfig("resnet99", "prunion", weights="none"), 64, 64)
