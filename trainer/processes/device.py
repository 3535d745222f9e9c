"""Where a run runs: its device, its threads and its seed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from prunion.runtime.base import default_threads, keep_freed_memory
from prunion.runtime.errors import ConfigError, PrunionError
from prunion.trainer.config import RunConfig, TrainConfig
from prunion.trainer.processes.torchrun import processes_started

__all__ = [
    "channels_last",
    "device_named",
    "keep_to_quota",
    "prepare_device",
    "prepare_torch",
    "switch_device",
    "torch_as_it_was",
]


def device_named(name: str, train: TrainConfig | None = None) -> str:
    """`cpu`, `cuda` or `mps`.

    `auto` takes CUDA where torch sees it, else the CPU: on an Apple GPU no run has been tried yet,
    so that is for those who ask for it.

    Raises:
        PrunionError: torch does not see the device.
        ConfigError: the device has no use for what `train` asks of it, or cannot be shared.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise PrunionError('device = "cuda", but torch sees no CUDA GPU: use "auto" or "cpu"')
    if name == "mps" and not torch.backends.mps.is_available():
        raise PrunionError(
            'device = "mps", but torch sees no Apple GPU (it needs macOS 12.3 and a build of torch '
            'with MPS): use "auto" or "cpu"'
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "mps" and (refusal := _too_much_for_apple(train)):
        raise ConfigError(refusal)
    if name == "cpu" and train is not None and train.precision == "fp16":
        raise ConfigError(
            '[train] precision is "fp16", and the run is on a CPU, which has no fast float16: use '
            '"fp32", or "bf16" where the CPU has it, or a GPU'
        )
    return name


def _too_much_for_apple(train: TrainConfig | None) -> str:
    """What of a run an Apple GPU cannot do, as a refusal; "" if it can do all of it."""
    if processes_started() > 1:
        return (
            'device = "mps", and torchrun started several processes, which cannot share an Apple '
            'GPU: start one, or use device = "cpu"'
        )
    if train is not None and train.granularity == "slice":
        return (
            '[train] granularity is "slice", which counts in float64, and an Apple GPU has none: '
            'use "channel", or device = "cpu"'
        )
    bf16 = train is not None and train.precision == "bf16"
    if bf16 and not torch.backends.mps.is_macos_or_newer(14, 0):
        return (
            '[train] precision is "bf16", which an Apple GPU has from macOS 14 on: use "fp16" or '
            '"fp32", or device = "cpu"'
        )
    return ""


def channels_last(net: nn.Module) -> None:
    """Lay the weights of convolutions over maps out as their fast kernels read them, in place.

    A module's own `to` takes tensors of five axes for such weights too, and fails.
    """
    for tensor in (*net.parameters(), *net.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.to(memory_format=torch.channels_last)


def switch_device(device: torch.device) -> torch.device:
    """Where switches learn and costs are counted: in float64, which Apple's GPUs lack."""
    return torch.device("cpu") if device.type == "mps" else device


@contextmanager
def torch_as_it_was() -> Iterator[None]:
    """A caller's torch has its own threads, chance and products again when the work is done."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    benchmark = torch.backends.cudnn.benchmark
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(gpus):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.benchmark = benchmark


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

    On a CUDA GPU cuDNN searches once for every shape of a batch, and float32 products may take
    TF32, as convolutions do by default.
    """
    if device == "cpu":
        keep_freed_memory()
    elif device == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
