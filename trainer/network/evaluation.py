"""Accuracy of the masked network per domain."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from prunion.trainer.config import InputConfig
from prunion.trainer.data import Domain, eval_batches, eval_transform
from prunion.trainer.network.masked import DomainNet
from prunion.trainer.processes import ALONE, Processes

__all__ = ["evaluate", "mean_of_views"]


def evaluate(
    net: DomainNet,
    domains: Sequence[Domain],
    shape: InputConfig,
    switches: torch.Tensor | None = None,
    *,
    gated: bool = True,
    batch_size: int = 64,
    processes: Processes = ALONE,
    workers: int = 0,
) -> dict[str, float]:
    """Share of right answers on each domain's test images.

    Args:
        switches: `[D, U]` to use instead of the network's own.
        gated: False leaves every switch on.
        processes: each measures the domains it owns; all get the answer.
        workers: processes that read images; 0 for a thread.
    """
    net.eval()
    device = net.switches.device
    accuracy: dict[int, float] = {}
    # Compiled, its short last batches would make every later step's graph one of any shape.
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        for index, domain in enumerate(domains):
            if not processes.owns(index):
                continue
            crops = shape.crops(domain.mirror)
            transform, right = eval_transform(shape, crops), 0
            batches = eval_batches(
                domain.test, transform, batch_size, workers, pin=device.type == "cuda"
            )
            for images, labels in batches:
                images = images.to(device, non_blocking=True, memory_format=torch.channels_last)
                (logits,) = net(images, [(index, len(images))], switches, gated=gated)
                answers = mean_of_views(logits, crops).argmax(1).cpu()
                right += int((answers == labels).sum())
            accuracy[index] = right / len(domain.test)
    accuracy = processes.merge(accuracy, len(domains))
    return {domain.name: accuracy[index] for index, domain in enumerate(domains)}


def mean_of_views(logits: torch.Tensor, crops: int) -> torch.Tensor:
    """Mean class probabilities `[N, C]` over an image's views, from logits `[N · crops, C]`."""
    if crops == 1:
        return logits
    views: torch.Tensor = logits.softmax(1).unflatten(0, (-1, crops))
    return views.mean(1)
