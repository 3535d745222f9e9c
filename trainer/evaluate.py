"""Accuracy of the masked network per domain."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from prunion.trainer.batches import eval_batches
from prunion.trainer.config import InputConfig
from prunion.trainer.domains import Domain
from prunion.trainer.network import DomainNet
from prunion.trainer.transforms import eval_transform

__all__ = ["evaluate"]


def evaluate(
    net: DomainNet,
    domains: Sequence[Domain],
    shape: InputConfig,
    switches: torch.Tensor | None = None,
    *,
    gated: bool = True,
    batch_size: int = 64,
) -> dict[str, float]:
    """Share of right answers on each domain's test images.

    Args:
        switches: `[D, U]` to use instead of the network's own.
        gated: False leaves every switch on.
    """
    net.eval()
    transform = eval_transform(shape)
    accuracy = {}
    with torch.no_grad():
        for index, domain in enumerate(domains):
            right = 0
            for images, labels in eval_batches(domain.test, transform, batch_size):
                images = images.to(net.switches.device, memory_format=torch.channels_last)
                (logits,) = net(images, [(index, len(labels))], switches, gated=gated)
                right += int((logits.argmax(1).cpu() == labels).sum())
            accuracy[domain.name] = right / len(domain.test)
    return accuracy
