"""Where a run runs: its device, its threads and its seed."""

from __future__ import annotations

import torch

from prunion.runtime.base import default_threads, keep_freed_memory
from prunion.runtime.errors import PrunionError
from prunion.trainer.config import RunConfig

__all__ = ["device_named", "keep_to_quota", "prepare_device", "prepare_torch"]


def device_named(name: str) -> str:
    """`cpu` or `cuda`; `auto` takes CUDA where torch sees it. Raises PrunionError without one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise PrunionError('device = "cuda", but torch sees no CUDA GPU: use "auto" or "cpu"')
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


def prepare_torch(config: RunConfig, device: str) -> None:
    """Threads and seed of a run, for the whole process, and what suits its device."""
    if config.threads:
        torch.set_num_threads(config.threads)
    else:
        keep_to_quota()
    torch.manual_seed(config.seed)
    prepare_device(device)


def keep_to_quota() -> None:
    """Give torch no more threads than the container's quota of time, which it does not know."""
    most = default_threads()
    if most is not None and torch.get_num_threads() > most:
        torch.set_num_threads(most)


def prepare_device(device: str) -> None:
    """Settings of the whole process: on the CPU freed memory is kept.

    On a GPU cuDNN searches once for every shape of a batch, and float32 products may take TF32,
    as convolutions do by default.
    """
    if device == "cpu":
        keep_freed_memory()
    else:
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
