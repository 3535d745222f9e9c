"""`[backbone] cut` takes what the module returns, or says why there is no such thing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from prunion.runtime.errors import ConfigError
from prunion.trainer.backbone import load_backbone
from prunion.trainer.config import BackboneConfig


class Block(nn.Module):
    """A convolution, and a gate that it keeps for whoever asks, or returns too."""

    def __init__(self, returns: str) -> None:
        super().__init__()
        self.conv, self.gate, self.returns = (
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Conv2d(8, 8, 1),
            returns,
        )
        self.kept: Any = None

    def forward(self, x: torch.Tensor) -> Any:
        y = self.conv(x)
        self.kept = self.gate(y).sigmoid()
        if self.returns == "both":
            return y, self.kept
        return {"map": y} if self.returns == "mapping" else y


class Net(nn.Module):
    """A stem, a block, what overwrites the block's map, a layer called twice, and a list."""

    def __init__(self, returns: str = "map") -> None:
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, 8, 3, padding=1), Block(returns)
        self.twice, self.drop = nn.Conv2d(8, 8, 1), nn.Dropout(0.5)
        self.layers, self.unused = nn.ModuleList([nn.Conv2d(8, 8, 1)]), nn.Conv2d(8, 8, 1)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.block(self.stem(x))
        y = y[0] if isinstance(y, tuple) else y["map"] if isinstance(y, dict) else y
        y = self.drop(self.twice(self.twice(y.mul_(self.block.kept))))
        y[:, :2].mul_(3.0)  # behind every cut of these tests, which nobody then reads
        return self.fc(self.layers[0](y).mean((2, 3)))


def features(model: nn.Module, cut: str, images: torch.Tensor) -> torch.Tensor:
    config = BackboneConfig("tests:Net", "python", cut=cut)
    with torch.no_grad():
        found: torch.Tensor = load_backbone(config, 8, 8, model=model)(images)
    return found


@pytest.mark.parametrize("returns", ["map", "mapping"])
def test_the_features_are_what_the_module_returns(returns: str) -> None:
    """Not the last that it computes, a gate, nor what is written over it behind the module."""
    model, images = Net(returns).eval(), torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        expected = model.block.conv(model.stem(images)).mean((2, 3))
    torch.testing.assert_close(features(model, "block", images), expected)


def test_a_module_that_computes_nothing_returns_its_input() -> None:
    model, images = Net().eval(), torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        y = model.block(model.stem(images))
        expected = model.twice(model.twice(y * model.block.kept)).mean((2, 3))
    torch.testing.assert_close(features(model, "drop", images), expected)


@pytest.mark.parametrize(
    ("cut", "returns", "said"),
    [
        ("block", "both", "module 'block' returns 2 tensors: give one that returns one tensor"),
        ("twice", "map", "module 'twice' is called 2 times: give one that is called once"),
        ("layers", "map", "module 'layers' is never called itself: give one such as layers.0"),
        ("unused", "map", "module 'unused' is never called itself: give one such as "),
        ("blocks", "map", "the network has no module 'blocks': give one such as block"),
    ],
)
def test_what_is_no_end_of_a_network_is_refused(cut: str, returns: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        features(Net(returns), cut, torch.randn(2, 3, 8, 8))
    assert str(caught.value).startswith(f"[backbone] cut: {said}")
