"""Widths that a backend's fast kernels do not take as they are: by arithmetic, no measurement.

Convolutions work on blocks of channels. A width that fills its last block in part takes the time
of the whole block or a slower kernel, so that a network pruned to it may be slower than a wider
one. What it costs is measured by `python -m prunion.benchmarks.cost.round_to`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from prunion.runtime.base import Backend, Precision, arithmetic_of, default_round_to, listed
from prunion.runtime.bundle.unit_table import UnitTable

__all__ = ["block_of", "multiples_below", "widths_warning"]

# Tensor cores take 8 channels of float16 at a time, and TensorRT packs 32 of int8.
GPU_BLOCKS = {"fp16": 8, "int8": 32}
SHOWN = 3


def block_of(backend: Backend, precision: Precision = "fp32") -> int | None:
    """Channels that a backend takes at a time: on a CPU 16 with AVX-512, else 8; None for any.

    `backend` is the real one: `auto` stands for a GPU.
    """
    if backend in ("cpu", "openvino"):
        return default_round_to()
    return GPU_BLOCKS.get(arithmetic_of(precision))


def multiples_below(table: UnitTable, block: int) -> tuple[np.ndarray, float]:
    """What is left with widths cut down to multiples of `block`, bool `[U]`, and its share of the
    multiplications; what is narrower than a block stays."""
    alive = np.ones(table.count, bool)
    for members in table.widths:
        kept = len(members) // block * block
        alive[members[kept or len(members) :]] = False
    return alive, table.macs(alive) / max(table.macs(np.ones_like(alive)), 1)


def widths_warning(widths: Mapping[str, tuple[int, int]], block: int | None, where: str) -> str:
    """One line about layers that pruning left at no multiple of `block`; empty if there are none.

    Args:
        widths: of each layer, before and after pruning, as a manifest has them.
        where: what has such blocks, such as `this CPU`.
    """
    if block is None:
        return ""
    off = {name: after for name, (_, after) in widths.items() if after % block}
    cut = {name: after for name, after in off.items() if after != widths[name][0]}
    if not cut:  # the backbone's own are nobody's fault here
        return ""
    some = listed([f"{name} {after}" for name, after in cut.items()], SHOWN)
    before = f"; {len(off) - len(cut)} more were so before pruning" if len(off) > len(cut) else ""
    return (
        f"{len(cut)} of {len(widths)} layers are cut to widths off the fast path of {where}, no "
        f"multiples of {block} ({some}{before}): set [budget] round_to = {block}"
    )
