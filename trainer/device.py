"""Which device a run learns on."""

from __future__ import annotations

import torch

from prunion.runtime.errors import PrunionError

__all__ = ["device_named"]


def device_named(name: str) -> str:
    """`cpu` or `cuda`; `auto` takes CUDA where torch sees it. Raises PrunionError without one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise PrunionError('device = "cuda", but torch sees no CUDA GPU: use "auto" or "cpu"')
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name
