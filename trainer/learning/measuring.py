"""What training measures between its steps: units' importance, and which switches came back.

Batches pass through the network as in a step, and no weight moves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from prunion.trainer.config import Precision
from prunion.trainer.data import Batch
from prunion.trainer.learning.step import forward_backward
from prunion.trainer.network import DomainNet
from prunion.trainer.processes import ALONE, Processes

__all__ = ["came_back", "importance_of"]


def importance_of(
    net: DomainNet,
    steps: Iterable[Sequence[Sequence[Batch]]],
    precision: Precision = "fp32",
    processes: Processes = ALONE,
    *,
    whole: bool = True,
) -> torch.Tensor:
    """Root mean square of ∂L/∂s over batches, `[D, U]`; BatchNorm's statistics stay as they are.

    Args:
        steps: each in the parts that are computed one after the other; their gradients add up.
        whole: with every switch on, or else as the network has them.
        precision: `fp16` measures in float32: there is no knowing yet which scale would do.
    """
    frozen = {k: v.clone() for k, v in net.trunk.named_buffers()}
    precision = "fp32" if precision == "fp16" else precision
    total = torch.zeros_like(net.switches)
    count = total.new_zeros(len(total), 1)
    for parts in steps:
        on = torch.ones_like(net.switches) if whole else net.switches.clone()
        on.requires_grad_()
        for batches in parts:
            forward_backward(net, batches, on, precision=precision)
        assert on.grad is not None
        if processes.slices:  # the square is of the whole batch's gradient
            processes.sum([on.grad])
        total += on.grad.square()
        for domain in {batch.domain for batches in parts for batch in batches}:
            count[domain] += 1
    net.zero_grad(set_to_none=True)
    for name, buffer in net.trunk.named_buffers():
        buffer.copy_(frozen[name])
    if not processes.slices:
        processes.sum([total, count])
    return (total / count.clamp(min=1)).sqrt()


def came_back(before: Mapping[str, torch.Tensor], now: Mapping[str, torch.Tensor]) -> int:
    """How many switches that were off before a step are on now, of bits by weight."""
    counts = [(now[name] & ~was).sum() for name, was in before.items()]
    return int(torch.stack(counts).sum()) if counts else 0
