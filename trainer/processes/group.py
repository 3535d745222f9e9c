"""The processes that train together, and what each of them holds.

The loss is a sum over domains of means over images. By default every process has a slice of every
domain's batch and adds what its images are of those means: so the *sum* of all processes' gradients
is that of one process on the joint batch, whatever the slices' sizes. Or each process has whole
domains: then BatchNorm's statistics, which belong to a domain, need no exchange at all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from itertools import count

import torch
from torch import distributed, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from prunion.runtime.base import reason_of
from prunion.runtime.errors import ConfigError, PrunionError
from prunion.trainer.config import Placement, TrainConfig
from prunion.trainer.processes.torchrun import attempt, processes_started

__all__ = ["ALONE", "Processes", "joined_processes"]

# How long a process waits for one that still opens or tests a larger data set; one that ended
# wakes the others at once.
PATIENCE = timedelta(hours=2)
GROUPS = count()  # of this process, one after the other


@dataclass(frozen=True)
class Processes:
    """The processes that train together, seen from one of them: number `index` of `count`.

    Attributes:
        placement: what each holds of a step: a slice of every domain's images, or whole domains.
    """

    index: int = 0
    count: int = 1
    placement: Placement = "domains"

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.index == 0

    @property
    def slices(self) -> bool:
        """Whether several processes share every domain's batch."""
        return self.count > 1 and self.placement == "images"

    def owns(self, domain: int) -> bool:
        """Whether a domain's answers are counted and written here."""
        return domain % self.count == self.index

    def reads(self, domain: int) -> bool:
        """Whether a domain's images are opened here."""
        return self.slices or self.owns(domain)

    def slice_of(self, before: int, count: int) -> slice:
        """Which of `count` images are this process's, where `before` others stand in front.

        Dealt out one by one over the whole step, so that no process has two more than another.
        """
        if not self.slices:
            return slice(0, count)
        return slice((self.index - before) % self.count, count, self.count)

    def average(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replace each tensor by its mean over processes."""
        tensors = list(tensors)
        self.sum(tensors)
        for tensor in tensors:
            tensor.div_(self.count)

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
def joined_processes(domains: int, train: TrainConfig, device: str) -> Iterator[Processes]:
    """Join the processes that `torchrun` started; alone without it.

    Raises:
        ConfigError: each has whole domains, and there are more processes than domains, or a step
            holds one domain only; or the environment is not torchrun's.
        PrunionError: another process ended before the run did.
    """
    size = processes_started()
    if size == 1:
        yield ALONE
        return
    if train.placement == "domains":
        _check_whole_domains(size, domains, train.order)
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    # Figures and flags stay on the CPU: exchanged by GPUs, each would have to be waited for.
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    # torchrun keeps one store for all its attempts: without a name of its own each of them, and
    # each group of one process, would find an earlier one's addresses, and wait for what is gone.
    store, rank = _meeting_point()
    store = PrefixStore(f"attempt {attempt()}, group {next(GROUPS)}", store)
    distributed.init_process_group(
        backend, store=store, rank=rank, world_size=size, timeout=PATIENCE
    )
    try:
        yield Processes(distributed.get_rank(), size, train.placement)
    except RuntimeError as exc:
        if not (isinstance(exc, distributed.DistError) or "gloo" in str(exc).lower()):
            raise
        raise PrunionError(
            "another process of this run ended, or cannot be reached: its own message says why; "
            "--resume goes on from the last epoch"
        ) from exc
    finally:
        distributed.destroy_process_group()


@cache
def _meeting_point() -> tuple[Store, int]:
    """Where the processes find each other, and this one's number; kept as long as the process.

    Made anew for a second group, one process could meet the other at the old one as it closes.
    """
    try:
        store, rank, _ = next(rendezvous("env://", timeout=PATIENCE))
    except ValueError as exc:
        raise ConfigError(
            f"the environment has WORLD_SIZE, and not all that torchrun sets beside it "
            f"({reason_of(exc)}): start with torchrun, or unset WORLD_SIZE"
        ) from None
    return store, rank


def _check_whole_domains(count: int, domains: int, order: str) -> None:
    if count > domains:
        raise ConfigError(
            f"torchrun started {count} processes for {domains} domains, and with [train] placement "
            f'"domains" a process holds whole ones: start at most {domains}, or set "images"'
        )
    if order != "joint":
        raise ConfigError(
            f'[train] order is "{order}", one domain a step, and placement is "domains", which '
            'leaves nothing to share among processes: use placement = "images"'
        )
