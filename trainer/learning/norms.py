"""BatchNorm's statistics in a run: brought by its steps, or estimated where too few are left."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

import torch

from prunion.trainer.backbone import NORM_MOMENTUM
from prunion.trainer.config import IN_TURNS, Precision, TrainConfig
from prunion.trainer.data import Batch, JointBatches
from prunion.trainer.learning.step import autocast_of, images_of, segments_of
from prunion.trainer.methods import SeriesSite
from prunion.trainer.network import DomainNet, DomainNorm
from prunion.trainer.pruning import Schedule

__all__ = ["RunNorms", "estimate_norms"]

LEFT = 0.01  # of what statistics were before: less than that changes no answer
MEASURED = 100  # joint steps, enough for a measurement
EVERY_STEP = ("joint", *IN_TURNS)  # orders in which each step brings everybody's, or one turn's own


class RunNorms:
    """Which steps have brought the statistics of the network as it is.

    Attributes:
        fixed_at: the step from which on the switches are final; 0 while they are not.
        estimated_at: the step before which statistics were estimated last, -1 for none.
    """

    def __init__(
        self,
        net: DomainNet,
        batches: JointBatches,
        train: TrainConfig,
        schedule: Schedule,
        share: Callable[[], None],
    ) -> None:
        """`share` makes statistics alike in all processes."""
        self.net, self.batches, self.train, self.share = net, batches, train, share
        self.schedule = schedule
        self.fixed_at, self.estimated_at = 0, -1

    def fix(self, step: int, epoch: int) -> None:
        """Switches are final from `step` on; joint steps that follow bring their statistics."""
        self.fixed_at = step
        if self.train.order != "joint":  # a domain may be absent for long
            self.estimate(step, epoch)

    def fit(self, step: int) -> bool:
        """Whether the steps before `step` left next to nothing of what statistics were before.

        Before the switches were final, or the run; in turns before each turn so far, or what it
        gave back, as only in its own turn do a domain's move.
        """
        since = min(self._since(step))
        if self.train.order not in EVERY_STEP:
            since = since * self.batches.least_per_epoch // self.batches.steps_per_epoch
        brought = (1 - NORM_MOMENTUM) ** (since * self.train.accumulate) <= LEFT
        return brought or self.estimated_at == step or not self.moves

    def _since(self, step: int) -> list[int]:
        """How many steps have brought the statistics of each turn so far; without turns, all."""
        schedule, now = self.schedule, self.schedule.task(step)
        found = [step - max(self.fixed_at, schedule.starts[now])]
        for turn, cut in zip(schedule.turns[:-1], self._turns_cuts(), strict=True):
            if cut <= step and turn.settle:  # without settling they are estimated as the turn ends
                found.append(min(step - cut, turn.settle))
        return found

    def _turns_cuts(self) -> list[int]:
        """The steps before which turns give weights back, as all but the last do."""
        pairs = zip(self.schedule.starts, self.schedule.turns[:-1], strict=False)
        return [start + turn.warmup + turn.ramp for start, turn in pairs]

    @property
    def moves(self) -> bool:
        """Whether the network has any statistics that move in training."""
        return bool(_moving(self.net))

    def cut_at(self, step: int) -> int:
        """The step before which the network as it is before `step` was cut last, 0 for never."""
        return max(self.fixed_at, *(cut for cut in [0, *self._turns_cuts()] if cut <= step))

    def estimate(
        self,
        step: int,
        epoch: int,
        switches: torch.Tensor | None = None,
        *,
        gated: bool = True,
        most: int | None = None,
    ) -> None:
        """Take statistics from the joint steps of `epoch`, `most` at most, as `estimate_norms`."""
        steps = islice(self.batches.epoch(epoch, joint=True), most)
        estimate_norms(self.net, steps, self.train.precision, switches, gated=gated)
        self.share()
        self.estimated_at = step

    @contextmanager
    def estimated(
        self, step: int, epoch: int, switches: torch.Tensor | None, *, gated: bool
    ) -> Iterator[None]:
        """Inside, statistics are estimated; then they and the random state are as before.

        From a part of a long epoch: a small domain may lack steps of its own for many epochs.
        """
        before = {name: buffer.clone() for name, buffer in self.net.trunk.named_buffers()}
        at, device = self.estimated_at, self.net.switches.device
        try:
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                self.estimate(step, epoch, switches, gated=gated, most=MEASURED)
            yield
        finally:
            for name, buffer in self.net.trunk.named_buffers():
                buffer.copy_(before[name])
            self.estimated_at = at


def estimate_norms(
    net: DomainNet,
    steps: Iterable[Sequence[Batch]],
    precision: Precision = "fp32",
    switches: torch.Tensor | None = None,
    *,
    gated: bool = True,
) -> None:
    """BatchNorm's statistics anew: the mean over batches, with the switches as they are.

    A domain's own are stale once others have moved its switches while it was absent, or too few of
    its steps followed. Those that never move, as of frozen norms, stay.

    Args:
        switches: `[D, U]` to use instead of the network's own.
        gated: False leaves every switch on.
    """
    device, norms = net.switches.device, _moving(net)
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    training = net.training
    net.train()
    # As in evaluation: without gradients a compiled trunk would be compiled once more.
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        for number, batches in enumerate(steps):
            for norm in norms:
                norm.momentum = 1 / (number + 1)  # of so many batches that is their plain mean
            images = images_of(batches, net)
            with autocast_of(device, precision):
                net.features(images, segments_of(batches), switches, gated=gated)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    net.train(training)


def _moving(net: DomainNet) -> list[DomainNorm | SeriesSite]:
    """What keeps statistics of every domain that move in training."""
    return [
        x
        for x in net.modules()
        if isinstance(x, SeriesSite) or (isinstance(x, DomainNorm) and not x.frozen)
    ]
