"""Steps that several processes share, each with a slice of every domain's batch.

torch's DistributedDataParallel sends the gradients of one part of the network while those of the
next are computed. It is told to add them up and not to average them: a slice's loss is already its
share of the whole batch's mean.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from prunion.runtime.errors import ConfigError
from prunion.trainer.config import TrainConfig
from prunion.trainer.learning.step.joint import StepResult
from prunion.trainer.methods import SeriesSite
from prunion.trainer.network import DomainNet, DomainNorm
from prunion.trainer.processes import Processes

__all__ = ["SharedSteps"]

TAKEN = inspect.signature(DistributedDataParallel.__init__).parameters
# Whether buffers are copied from the first process at each step: newer torch has a new name for it.
BUFFERS = next(name for name in ("forward_sync_buffers", "broadcast_buffers") if name in TAKEN)
# Whether the first process's parameters and buffers are copied when it is made, which older torch
# always does.
START = "init_sync"


class SharedSteps:
    """What a step calls in place of the network, so that all processes get the same gradients."""

    def __init__(self, net: DomainNet, processes: Processes, train: TrainConfig) -> None:
        """Every process begins with the first one's parameters.

        Raises ConfigError for slices where processes have whole domains: their charges are of all
        domains at once.
        """
        if processes.count > 1 and not processes.slices and train.granularity == "slice":
            raise ConfigError(
                '[train] granularity is "slice" and placement is "domains", where no process sees '
                'all domains\' switches: set placement = "images", or start one process'
            )
        self.net, self.processes, self.slices = net, processes, processes.slices
        # One domain a step leaves the others' parameters unused, and of "svd" one of two sets is:
        # torch's engine takes no gradients where there are none, so they are sent behind the step.
        self.wraps = self.slices and train.order == "joint" and train.method != "svd"
        # Each process knows the whole of what a method charges; `finish` adds up these parts of it.
        self.penalty_share = 1 / processes.count if self.slices and not self.wraps else 1.0
        if self.slices:
            processes.copy_from_first([*net.parameters(), *net.buffers()])
        self._wrapped: DistributedDataParallel | None = None
        self._learning: tuple[bool, ...] = ()
        if self.slices and train.sync_norms:
            for module in net.modules():
                if isinstance(module, (DomainNorm, SeriesSite)):
                    module.processes = processes

    def release(self) -> None:
        """Leave the network to another run."""
        self._wrapped = None

    @contextmanager
    def exchange(self, *, last: bool = True) -> Iterator[nn.Module]:
        """What a step, or a part of it, calls; only the `last` part sends the gradients."""
        module = self._module()
        if last or not isinstance(module, DistributedDataParallel):
            yield module
            return
        with module.no_sync():
            yield module

    def finish(self) -> None:
        """Add up the gradients that are not added up yet, after the backward pass."""
        if not self.slices:
            self.processes.sum_gradients(self.net.parameters())
        elif not self.wraps:  # every process has images of the step's domains: the same ones learn
            self.processes.sum([p.grad for p in self.net.parameters() if p.grad is not None])

    def joined(self, result: StepResult, switches: torch.Tensor | None) -> StepResult:
        """The step of all processes together: summed gradients, every domain's figures."""
        if self.processes.count == 1:
            return result
        self.finish()
        if switches is not None and switches.grad is not None:
            self.processes.sum([switches.grad])
        count = len(self.net.classes)
        return StepResult(
            self.processes.merge(result.loss, count), self.processes.merge(result.accuracy, count)
        )

    def _module(self) -> nn.Module:
        """The network itself, or what wraps it while the same parameters learn."""
        if not self.wraps:
            return self.net
        learning = tuple(p.requires_grad for p in self.net.parameters())
        if self._wrapped is None or learning != self._learning:
            # Statistics are alike everywhere already, or meant to differ; parameters are alike.
            apart: Any = {BUFFERS: False} | ({START: False} if START in TAKEN else {})
            own = [buffer.clone() for buffer in self.net.buffers()]
            self._wrapped = None  # its hooks must be gone before another one's come
            self._wrapped = DistributedDataParallel(self.net, gradient_as_bucket_view=True, **apart)
            for buffer, kept in zip(self.net.buffers(), own, strict=True):
                buffer.copy_(kept)
            self._wrapped.register_comm_hook(None, lambda state, bucket: _added(bucket))
            self._learning = learning
        return self._wrapped


def _added(bucket: Any) -> torch.futures.Future[torch.Tensor]:
    """The sum of a bucket of gradients over processes."""
    work = distributed.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None
    done: torch.futures.Future[Any] = work.get_future()
    return done.then(lambda future: future.value()[0])
