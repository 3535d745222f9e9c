"""The small ResNets of the multi-domain papers, as plain torch modules without a classifier.

ResNet-26: Rebuffi, Bilen and Vedaldi 2017, "Learning multiple visual domains with residual
adapters", arXiv:1705.08045. WRN-28-4: the post-activation form of the line of Mancini et al. and
of Berriel et al. 2019, "Budget-Aware Adapters for Multi-Domain Learning", arXiv:1905.06242, and
the pre-activation form of Zagoruyko and Komodakis 2016, "Wide Residual Networks",
arXiv:1605.07146; both halve the map in every stage, for images of 64 or 72 px.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["PAPER_NETS", "ResNet26", "WideResNet"]

BLOCKS = 4  # per stage, in all of these networks


class ZeroPadBlock(nn.Module):
    """`ReLU(BN(conv(ReLU(BN(conv(x))))) + shortcut)`; the shortcut has no parameters.

    Where the block halves the map, the shortcut is average-pooled and continued with zeros.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv3x3(inputs, outputs, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = _conv3x3(outputs, outputs), nn.BatchNorm2d(outputs)
        self.halve = stride > 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[N, C, H, W]` → `[N, C', H/stride, W/stride]`."""
        y: torch.Tensor = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y))
        if self.halve:
            x = F.avg_pool2d(x, 2)
            x = torch.cat([x, x * 0], dim=1)
        return (y + x).relu()


class ResNet26(nn.Module):
    """25 convolutions of 32, 64, 128 and 256 channels, `[N, 3, H, W]` → `[N, 256]`.

    5,806,944 convolution weights; 853.1 M multiply-accumulates at 64×64, ImageNet's head included.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = _conv3x3(3, 32), nn.BatchNorm2d(32)
        self.stages = _stages(ZeroPadBlock, (32, 64, 128, 256))
        self.end = nn.BatchNorm2d(256)
        _initialise(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features `[N, 256]`."""
        x = self.end(self.stages(self.bn(self.conv(x))))
        return x.relu().mean((2, 3))


class PostBlock(nn.Module):
    """`ReLU(BN(conv(ReLU(BN(conv(x))))) + shortcut)`; a 1×1 convolution where the width grows."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv3x3(inputs, outputs, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = _conv3x3(outputs, outputs), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if inputs != outputs:
            self.shortcut.append(nn.Conv2d(inputs, outputs, 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[N, C, H, W]` → `[N, C', H/stride, W/stride]`."""
        y: torch.Tensor = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y))
        x = self.shortcut(x)
        return (y + x).relu()


class PreBlock(nn.Module):
    """`conv(ReLU(BN(conv(ReLU(BN(x)))))) + shortcut`; the 1×1 shortcut reads the raw `x`."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), _conv3x3(inputs, outputs)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), _conv3x3(outputs, outputs, stride)
        self.shortcut = nn.Sequential()
        if inputs != outputs:
            self.shortcut.append(nn.Conv2d(inputs, outputs, 1, stride))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[N, C, H, W]` → `[N, C', H/stride, W/stride]`."""
        y: torch.Tensor = self.conv1(self.bn1(x).relu())
        y = self.conv2(self.bn2(y).relu())
        x = self.shortcut(x)
        return y + x


class WideResNet(nn.Module):
    """28 convolutions of 16 and `16, 32, 64` times `width` channels, `[N, 3, H, W]` → features.

    At width 4: 5,839,280 convolution weights, 256 features; post-activation 847.2 M
    multiply-accumulates at 64×64, ImageNet's head included.
    """

    def __init__(self, width: int = 4, *, preact: bool = False) -> None:
        super().__init__()
        last = 64 * width
        self.conv = _conv3x3(3, 16)
        self.bn = nn.Identity() if preact else nn.Sequential(nn.BatchNorm2d(16), nn.ReLU())
        self.stages = _stages(PreBlock if preact else PostBlock, (16, 16 * width, 32 * width, last))
        self.end = nn.Sequential(nn.BatchNorm2d(last), nn.ReLU()) if preact else nn.Identity()
        _initialise(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features `[N, 64 · width]`."""
        x = self.end(self.stages(self.bn(self.conv(x))))
        return x.mean((2, 3))


def _conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)


def _stages(block: Callable[[int, int, int], nn.Module], widths: tuple[int, ...]) -> nn.Sequential:
    """Stages of four blocks, the first of each halving the map."""
    stages = nn.Sequential()
    for inputs, outputs in pairwise(widths):
        first = block(inputs, outputs, 2)
        stages.append(nn.Sequential(first, *(block(outputs, outputs, 1) for _ in range(1, BLOCKS))))
    return stages


def _initialise(net: nn.Module) -> None:
    """Convolutions from N(0, 2 / (k² · outputs)), as both papers' codes do."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            fan = math.prod(module.kernel_size) * module.out_channels
            nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan))


PAPER_NETS: dict[str, Callable[[], nn.Module]] = {
    "resnet26": ResNet26,
    "wrn28_4": WideResNet,
    "wrn28_4_preact": lambda: WideResNet(preact=True),
}
