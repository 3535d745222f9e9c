"""Muon: a step of a layer's weights that is as large in every direction.

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks": the momentum of a
layer's gradient, as the matrix of its filters, is replaced by the nearest matrix whose singular
values are all 1. The polynomial and its five rounds are theirs. How far a step goes is as Liu et
al. 2025 have it, "Muon is Scalable for LLM Training", arXiv:2502.16982, section 2.2: a learning
rate moves an entry about as far as AdamW would.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

__all__ = ["Matrices", "matrices_of", "orthogonal", "orthogonal_step"]

Matrices = tuple[int, int, int]  # how many a parameter holds, and their rows and columns

MOMENTUM = 0.95
ROUNDS = 5
ONCE, THRICE, FIVEFOLD = 3.4445, -4.7750, 2.0315  # of each singular value
SMALLEST = 1e-7  # of a gradient that still has a direction
# Of a channel that went the momentum fades, and its products fall below what float32 holds in full,
# where a CPU takes fifty times as long: an entry this small, of a matrix of norm 1, moves nothing.
FADED = 1e-8
GONE = 1e-20  # of a momentum's entry
WIDEST = 2048
SIZE = 0.2  # the root mean square of AdamW's steps


def matrices_of(shape: Sequence[int], rows: int = 1) -> Matrices | None:
    """`rows` weights of `shape` `[O, I, …]`, a matrix each; None where it is none.

    A bias is a vector, and so is each filter of a depthwise convolution, which reads one channel.
    One of more than `WIDEST` rows and columns, as VGG's first linear layer, would take longer to be
    made orthogonal than its gradient takes.
    """
    if len(shape) < 2 or shape[1] == 1:
        return None
    columns = torch.Size(shape[1:]).numel()
    return None if min(shape[0], columns) > WIDEST else (rows, shape[0], columns)


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """The same singular vectors, every singular value near 1 (0.7 to 1.2); `[…, R, C]`.

    The rounds are taken on the smaller of the two products of a matrix with itself, which costs a
    fraction where a layer has many more inputs than filters. What is zero stays zero, and what is
    as good as zero beside the rest becomes it.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    wide = matrices.mT if tall else matrices
    wide = wide / wide.norm(dim=(-2, -1), keepdim=True).clamp(min=SMALLEST)
    wide = F.hardshrink(wide, FADED)
    product = wide @ wide.mT
    one = torch.eye(product.shape[-1], dtype=wide.dtype, device=wide.device)
    factors = one.expand_as(product)
    for _ in range(ROUNDS):
        factor = ONCE * one + THRICE * product + FIVEFOLD * (product @ product)
        factors = factor @ factors
        product = factor @ product @ factor
    found: torch.Tensor = factors @ wide
    return found.mT if tall else found


def orthogonal_step(
    parameter: torch.Tensor,
    gradient: torch.Tensor,
    speed: torch.Tensor,
    matrices: Matrices,
    group: dict[str, Any],
) -> None:
    """One step of `parameter`, in place; `speed` is its momentum, of the same shape."""
    speed.lerp_(gradient, 1 - MOMENTUM)
    speed.copy_(F.hardshrink(speed, GONE))
    ahead = gradient.lerp(speed, MOMENTUM).reshape(matrices)
    step = orthogonal(ahead.float()).reshape(parameter.shape)
    parameter.mul_(1 - group["lr"] * group["weight_decay"])
    parameter.sub_(step, alpha=group["lr"] * SIZE * max(matrices[1:]) ** 0.5)
