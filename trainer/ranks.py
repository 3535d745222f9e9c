"""Several processes, one training: every rank holds whole domains and adds up the gradients.

BatchNorm's statistics belong to a domain, so no rank needs another's. The loss is a sum over
domains, so gradients summed over ranks are those of one process on the joint batch. That is why
they are summed here, in one buffer, and not averaged by DistributedDataParallel, which would also
have to look for the heads that a rank does not use.
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

from prunion.runtime.errors import ConfigError, PrunionError

__all__ = ["ALONE", "Ranks", "joined_ranks"]

# How long a rank waits for one that still opens or tests a larger data set; one that ended
# wakes the others at once.
PATIENCE = timedelta(hours=2)


@dataclass(frozen=True)
class Ranks:
    """This process among `world` of them, as `torchrun` started it."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def owns(self, domain: int) -> bool:
        """Whether a domain's images are read here."""
        return domain % self.world == self.rank

    def sum(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replace each tensor by its sum over ranks, in one exchange for each type and device."""
        if self.world == 1:
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
        """Add up the gradients; a parameter that this rank did not use counts as zero."""
        if self.world == 1:
            return
        for parameter in parameters:
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.sum(p.grad for p in parameters if p.grad is not None)

    def merge(self, values: Mapping[int, float], count: int) -> dict[int, float]:
        """Every rank's values by domain, put together: `count` domains in all."""
        if self.world == 1:
            return dict(values)
        table = torch.zeros(2, count, dtype=torch.float64)
        for domain, value in values.items():
            table[0, domain], table[1, domain] = value, 1
        distributed.all_reduce(table)
        sums, known = table.tolist()
        return {d: sums[d] for d in range(count) if known[d]}

    def on_first(self, action: Callable[[], None]) -> None:
        """Run `action` on the first rank; the others wait, and end with it where it fails.

        Raises what `action` raises; PrunionError with the same words on the other ranks.
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
        """Every rank's text, which must not be empty, in the order of ranks."""
        if self.world == 1:
            return [text]
        own = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
        sizes = torch.zeros(self.world, dtype=torch.int64)
        sizes[self.rank] = len(own)
        distributed.all_reduce(sizes)
        table = torch.zeros(self.world, int(sizes.max()), dtype=torch.uint8)
        table[self.rank, : len(own)] = own
        distributed.all_reduce(table)
        rows = zip(table, sizes.tolist(), strict=True)
        return [row[:size].numpy().tobytes().decode() for row, size in rows]

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on some rank."""
        return any(self.merge({self.rank: float(flag)}, self.world).values())

    def copy_from_first(self, tensors: Sequence[torch.Tensor]) -> None:
        """Give every rank the first one's values."""
        if self.world > 1:
            for tensor in tensors:
                distributed.broadcast(tensor, 0)

    def share_rows(self, tables: Sequence[torch.Tensor]) -> None:
        """Give every rank all rows of tables with a row for each domain, each from its owner."""
        if self.world == 1 or not tables:
            return
        others = [d for d in range(len(tables[0])) if not self.owns(d)]
        for table in tables:
            table[others] = 0
        self.sum(tables)


ALONE = Ranks()


@contextmanager
def joined_ranks(domains: int, order: str, device: str) -> Iterator[Ranks]:
    """Join the processes that `torchrun` started; alone without it.

    Raises:
        ConfigError: there are more processes than domains, or a step holds one domain only.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield ALONE
        return
    if world > domains:
        raise ConfigError(
            f"torchrun started {world} processes for {domains} domains, and a process holds whole "
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
        yield Ranks(distributed.get_rank(), world)
    finally:
        distributed.destroy_process_group()
