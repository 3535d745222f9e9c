"""A network with norms that are drawn, where a check needs one that has not learnt."""

from __future__ import annotations

import torch

from prunion.trainer.network.masked import DomainNet

__all__ = ["draw_norms"]


def draw_norms(net: DomainNet, height: int, width: int) -> None:
    """Domains that differ, and activations of a sane size; `net` is in evaluation's form then.

    Drawn weights with drawn shifts would die out or explode over a hundred layers, so the norms'
    statistics are those of a batch of noise.
    """
    count = len(net.classes)
    with torch.no_grad():
        for norm in net.norms.values():
            # Not scaled from what is there: a block's last norm often starts at zero.
            norm.weight.copy_(1 + 0.2 * torch.randn_like(norm.weight))
            norm.bias.copy_(0.2 * torch.randn_like(norm.bias))
            norm.momentum = 1.0
        net.train()
        net(torch.randn(2 * count, 3, height, width), [(row, 2) for row in range(count)])
    net.eval()
