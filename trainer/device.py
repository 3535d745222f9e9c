"""Which device a run learns on, and what makes it learn faster there."""

from __future__ import annotations

import torch

from prunion.runtime.errors import PrunionError
from prunion.trainer.memory import keep_freed_memory

__all__ = ["device_named", "prepare_device"]


def device_named(name: str) -> str:
    """`cpu` or `cuda`; `auto` takes CUDA where torch sees it. Raises PrunionError without one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise PrunionError('device = "cuda", but torch sees no CUDA GPU: use "auto" or "cpu"')
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


def prepare_device(device: str) -> None:
    """Settings of the whole process: freed memory is kept on the CPU, cuDNN may try its ways."""
    if device == "cpu":
        keep_freed_memory()
    else:  # a run's images are all of one size, so what was found once is right for every step
        torch.backends.cudnn.benchmark = True
