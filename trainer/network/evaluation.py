"""Accuracy of the masked network per domain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from prunion.trainer.config import InputConfig
from prunion.trainer.data import Domain, eval_batches, eval_transform
from prunion.trainer.network.masked import DomainNet
from prunion.trainer.processes import ALONE, Processes

__all__ = ["evaluate", "mean_of_views", "right_answers"]


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
    options: dict[str, Any] = {"gated": gated, "batch_size": batch_size, "workers": workers}
    accuracy = {
        index: float(right_answers(net, index, domain, shape, switches, **options).mean())
        for index, domain in enumerate(domains)
        if processes.owns(index)
    }
    accuracy = processes.merge(accuracy, len(domains))
    return {domain.name: accuracy[index] for index, domain in enumerate(domains)}


def right_answers(
    net: DomainNet,
    index: int,
    domain: Domain,
    shape: InputConfig,
    switches: torch.Tensor | None = None,
    *,
    gated: bool = True,
    batch_size: int = 64,
    workers: int = 0,
) -> np.ndarray:
    """Whether each test image of the network's domain `index` is answered right, in order: `[N]`.

    The arguments are those of `evaluate`.
    """
    net.eval()
    device = net.switches.device
    crops = shape.crops(domain.mirror)
    transform, right = eval_transform(shape, crops), []
    # Compiled, its short last batches would make every later step's graph one of any shape.
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        batches = eval_batches(
            domain.test, transform, batch_size, workers, pin=device.type == "cuda"
        )
        for images, labels in batches:
            images = images.to(device, non_blocking=True, memory_format=torch.channels_last)
            (logits,) = net(images, [(index, len(images))], switches, gated=gated)
            right.append((mean_of_views(logits, crops).argmax(1).cpu() == labels).numpy())
    return np.concatenate(right)


def mean_of_views(logits: torch.Tensor, crops: int) -> torch.Tensor:
    """Mean class probabilities `[N, C]` over an image's views, from logits `[N · crops, C]`."""
    if crops == 1:
        return logits
    views: torch.Tensor = logits.softmax(1).unflatten(0, (-1, crops))
    return views.mean(1)
