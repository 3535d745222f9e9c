"""`little.py ARGUMENTS`: the command `prunion` with few channels in the papers' networks."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["Little"]


class Little(nn.Module):
    """One convolution, a residual block of two, and two that halve the map: three stages."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.conv3, self.bn3 = nn.Conv2d(8, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.conv4, self.bn4 = nn.Conv2d(8, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features `[N, 8]` of images `[N, 3, H, W]`."""
        x = self.bn(self.conv(x)).relu()
        y: torch.Tensor = self.bn1(self.conv1(x)).relu()
        x = (self.bn2(self.conv2(y)) + x).relu()
        x = self.bn3(self.conv3(x)).relu()
        return self.bn4(self.conv4(x)).relu().mean((2, 3))


if __name__ == "__main__":
    from prunion.runtime.cli.main import main
    from prunion.trainer.backbone import PAPER_NETS

    PAPER_NETS["wrn28_4"] = PAPER_NETS["resnet26"] = Little
    main()
