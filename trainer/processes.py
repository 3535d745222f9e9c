"""Where a run runs: its device, and its processes, each with whole domains.

BatchNorm's statistics belong to a domain, so no process needs another's. The loss is a sum over
domains, so the sum of all processes' gradients is that of one process on the joint batch. That is
why gradients are summed here, in one buffer, and not averaged by DistributedDataParallel, which
would also have to look for the heads that a process does not use.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed, nn

from prunion.runtime.base import default_threads, keep_freed_memory
from prunion.runtime.errors import ConfigError, PrunionError
from prunion.trainer.config import RunConfig

__all__ = [
    "ALONE",
    "Processes",
    "device_named",
    "joined_processes",
    "keep_to_quota",
    "prepare_device",
    "prepare_torch",
]


@dataclass(frozen=True)
class Processes:
    """The processes that train together, seen from one of them: number `index` of `count`."""

    index: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.index == 0

    def owns(self, domain: int) -> bool:
        """Whether a domain's images are read here."""
        return domain % self.count == self.index

    def sum(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replace each tensor by its sum over processes, one exchange for each type and device."""
        if self.count == 1:
            return
        kinds: dict[tuple[torch.dtype, torch.device], list[torch.Tensor]] = {}
        for tensor in tensors:
            kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
        for group in kinds.values():
            flat = torch.cat([t.reshape(-1) for t in group])
            distributed.all_reduce(flat)
            for tensor, part in zip(group, flat.split([t.numel() for t in group]), strict=True):
                tensor.copy_(part.view(tensor.shape))

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up the gradients; a parameter that this process did not use counts as zero."""
        if self.count == 1:
            return
        # Every process must send the same parameters, also those that only another one used.
        gradients = []
        for parameter in parameters:
            if parameter.grad is None and parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
            if parameter.grad is not None:
                gradients.append(parameter.grad)
        self.sum(gradients)

    def merge(self, values: Mapping[int, float], count: int) -> dict[int, float]:
        """Every process's values by domain, put together: `count` domains in all."""
        if self.count == 1:
            return dict(values)
        table = torch.zeros(2, count, dtype=torch.float64)
        for domain, value in values.items():
            table[0, domain], table[1, domain] = value, 1
        distributed.all_reduce(table)
        sums, known = table.tolist()
        return {d: sums[d] for d in range(count) if known[d]}

    def on_first(self, action: Callable[[], None]) -> None:
        """Run `action` in the first process; the others wait, and end with it where it fails.

        Raises what `action` raises; PrunionError with the same words in the other processes.
        """
        broken: Exception | None = None
        if self.first:
            try:
                action()
            except (PrunionError, OSError) as exc:
                broken = exc
        told = json.loads(self.share_text(json.dumps(str(broken) if broken else None))[0])
        if told is not None:
            raise broken or PrunionError(told)

    def share_text(self, text: str) -> list[str]:
        """Every process's text, which must not be empty, in the order of their numbers."""
        if self.count == 1:
            return [text]
        own = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
        sizes = torch.zeros(self.count, dtype=torch.int64)
        sizes[self.index] = len(own)
        distributed.all_reduce(sizes)
        table = torch.zeros(self.count, int(sizes.max()), dtype=torch.uint8)
        table[self.index, : len(own)] = own
        distributed.all_reduce(table)
        rows = zip(table, sizes.tolist(), strict=True)
        return [row[:size].numpy().tobytes().decode() for row, size in rows]

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in some process."""
        return any(self.merge({self.index: float(flag)}, self.count).values())

    def copy_from_first(self, tensors: Iterable[torch.Tensor]) -> None:
        """Give every process the first one's values."""
        if self.count > 1:
            for tensor in tensors:
                distributed.broadcast(tensor, 0)

    def share_rows(self, tables: Sequence[torch.Tensor]) -> None:
        """Give every process all rows of tables with a row for each domain, from its owner."""
        if self.count == 1 or not tables:
            return
        others = [d for d in range(len(tables[0])) if not self.owns(d)]
        for table in tables:
            table[others] = 0
        self.sum(tables)


ALONE = Processes()


@contextmanager
def joined_processes(domains: int, order: str, device: str) -> Iterator[Processes]:
    """Join the processes that `torchrun` started; alone without it.

    Raises:
        ConfigError: there are more processes than domains, or a step holds one domain only.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield ALONE
        return
    if count > domains:
        raise ConfigError(
            f"torchrun started {count} processes for {domains} domains, and a process holds whole "
            f"domains: start at most {domains}"
        )
    if order != "joint":
        raise ConfigError(
            f'[train] order is "{order}", one domain a step, which leaves nothing to share among '
            'processes: use "joint", or start without torchrun'
        )
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    # Figures and flags stay on the CPU: exchanged by GPUs, each would have to be waited for.
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    distributed.init_process_group(backend, timeout=PATIENCE)
    try:
        yield Processes(distributed.get_rank(), count)
    finally:
        distributed.destroy_process_group()


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


# How long a process waits for one that still opens or tests a larger data set; one that ended
# wakes the others at once.
PATIENCE = timedelta(hours=2)
