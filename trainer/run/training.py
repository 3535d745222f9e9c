"""The state of a run and its phases: warm-up, ranking, ramp, projection, settling."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from prunion.trainer.config.choices import Phase
from prunion.trainer.config.run import RunConfig
from prunion.trainer.cost.budget import PricedBudget, select_union
from prunion.trainer.data.batches import Batch, JointBatches
from prunion.trainer.network.masked import DomainNet
from prunion.trainer.pruning.learners import PaperLearner, SwitchLearner, order_in_rows
from prunion.trainer.pruning.multipliers import Pressure
from prunion.trainer.pruning.schedule import Schedule
from prunion.trainer.ranks import ALONE, Ranks
from prunion.trainer.run.distillation import load_teacher
from prunion.trainer.run.interrupt import StopRequest
from prunion.trainer.run.optimiser import WeightAverage, make_optimiser, set_rates, trunk_parameters
from prunion.trainer.run.steps import (
    StepResult,
    check_losses,
    check_network,
    forward_backward,
    importance_of,
)

__all__ = ["Training"]

RANKING_STEPS = 24
LEAST_UPDATES = 72  # of the switches in a ramp
Report = Callable[[dict[str, float]], None]


class Training:
    """A run in progress; `run_epoch` moves it on by one epoch."""

    def __init__(
        self,
        config: RunConfig,
        net: DomainNet,
        batches: JointBatches,
        budget: PricedBudget,
        ranks: Ranks = ALONE,
    ) -> None:
        self.config, self.net, self.batches, self.budget = config, net, batches, budget
        self.ranks = ranks
        if config.train.compile:
            net.trunk.compile()
        net.to(memory_format=torch.channels_last)
        train = config.train
        per_epoch = batches.steps_per_epoch
        self.paper = train.recipe == "paper"
        self.learns = self.paper or budget.share < 1
        warmup, ramp, settle = (n * per_epoch for n in (train.warmup, train.ramp, train.settle))
        if self.paper:
            self.schedule = Schedule(0, warmup + ramp, settle, budget.share, steps_down=True)
        else:
            self.schedule = Schedule(warmup, ramp, settle, budget.share)
        self.cost = budget.pricer.cost_model().to(net.switches.device)
        domains, units = net.switches.shape
        # A short ramp needs every step: too few updates overshoot and cut what matters.
        turns = 1 if self.paper or train.order == "joint" else len(config.domains)
        every = min(train.switch_every, self.schedule.ramp // (LEAST_UPDATES * turns))
        self.every = 1 if self.paper else max(1, every)
        # One batch of each domain in turn: all of them learn, or `every` could meet the same ones.
        self.round = len(config.domains) if train.order == "batch" else 1
        travel = train.switch_travel * self.every * turns / max(1, self.schedule.ramp)
        self.learner: SwitchLearner | PaperLearner
        if self.paper:
            self.learner = PaperLearner(domains, units, net.switches.device)
        else:
            self.learner = SwitchLearner(domains, units, travel, net.switches.device)
        paced = replace(train, switch_every=self.every)
        self.pressure = Pressure(paced, self.cost, domains, turns)
        self.optimiser = make_optimiser(train, net, batches.images)
        self.names = [d.name for d in config.domains]
        classes = dict(zip(self.names, batches.classes, strict=True))
        self.teacher = load_teacher(train, config.input, classes, net.switches.device)
        self.average = WeightAverage(train.average * per_epoch)
        self.epoch = 0
        self.step = 0
        self.phase: Phase = "warmup"
        self.saved = "no state was saved yet"  # for a message when the loss breaks
        self.cost_share: float | None = None  # that the switches leave; None: to be counted again
        self.uncut = 1.0  # share of the cost that learning left, before the projection

    def run_epoch(self, report: Report, stop: StopRequest | None = None) -> None:
        """Train to the end of the epoch, or to the step after which `stop` is set.

        `report` gets every step's figures. An epoch that was stopped goes on where it was.
        """
        self.net.train()
        start = self.step - self.epoch * self.batches.steps_per_epoch
        for batches in self.batches.epoch(self.epoch, start):
            self._enter(self.schedule.phase(self.step))
            result = self._step(batches)
            report(self._figures(result))
            self.step += 1
            if self.ranks.any(bool(stop)):
                break
        statistics = [b for m in self.net.norms.values() for b in (m.running_mean, m.running_var)]
        self.ranks.share_rows(statistics + self.average.statistics())
        check_network(self.net, self.where(), self.saved)
        if self.step < (self.epoch + 1) * self.batches.steps_per_epoch:
            return
        self.epoch += 1
        if self.step >= self.schedule.total:
            self._enter("settle")
            self.average.move_into(self.net)

    def where(self) -> str:
        """The step and epoch, for messages."""
        return f"step {self.step}, epoch {self.epoch}"

    def alive(self) -> np.ndarray:
        """Units that at least one domain uses, `[U]` bool."""
        return (self.switches() > 0).any(0).cpu().numpy()

    def switches(self) -> torch.Tensor:
        """The switches as they are now, 0/1 `[D, U]`."""
        if self.phase == "ramp" and self.learns:
            return (self.learner.scores > 0).float()
        return self.net.switches

    def choices(self) -> torch.Tensor:
        """What each domain chose for itself of the channels that are kept, 0/1 `[D, U]`."""
        if self.phase != "settle" or not self.learns or self.config.train.cut == "domains":
            return self.switches()
        return (self.learner.scores > 0).float() * self.net.switches.amax(0)

    # --- phases -----------------------------------------------------------------------------

    def _enter(self, phase: Phase) -> None:
        if phase == self.phase:
            return
        if isinstance(self.learner, SwitchLearner) and self.phase == "warmup" and self.learns:
            self._rank(self.learner)
        if phase == "settle" and self.learns:
            self._project()
        self.phase = phase
        self.cost_share = None

    def _rank(self, learner: SwitchLearner) -> None:
        """Place the switches by how much each domain's loss reacts to them, or at random."""
        steps = _first(self.batches.epoch(self.epoch, joint=True), RANKING_STEPS)
        frozen = {k: v.clone() for k, v in self.net.trunk.named_buffers()}
        importance = importance_of(self.net, steps, self.config.train.precision, self.ranks)
        learner.start(importance)
        if self.config.train.ranking == "random":  # the same step sizes, another order
            learner.scores = order_in_rows(torch.rand_like(importance))
            self.ranks.copy_from_first([learner.scores])
        for name, buffer in self.net.trunk.named_buffers():  # ranking must not move statistics
            buffer.copy_(frozen[name])

    def _project(self) -> None:
        """Cut what the ramp left over the budget, and settle who uses what is kept."""
        scores = self.learner.scores
        self.uncut = self.budget.pricer.of(self.alive()) / self.budget.full
        if self.config.train.cut == "domains":
            self.net.switches.copy_(torch.stack([self._cut_alone(row) for row in scores]))
            return
        # A unit is worth what all its users together give it. That is 0 for all that nobody uses;
        # the small second part puts those first that some domain was nearest to using.
        worth = scores.clamp(min=0).sum(0) + 1e-3 * scores.max(0).values
        used = (scores > 0).any(0).cpu().numpy() if self.paper else None
        alive = select_union(worth.cpu().numpy(), self.budget, used)
        kept = torch.from_numpy(alive).to(scores)
        chosen = (scores > 0).float() * kept
        # What nobody chose, what fills the budget or a multiple, is everybody's.
        own = torch.where(chosen.amax(0) > 0, chosen, kept)
        self.net.switches.copy_(kept if self.config.train.opens else own)

    def _cut_alone(self, scores: torch.Tensor) -> torch.Tensor:
        """One domain's switches `[U]`, cut to the budget as if it were the only one."""
        row = scores.cpu().numpy()
        alive = select_union(row, self.budget, used=row > 0)
        return torch.from_numpy(alive).to(scores)

    # --- steps ------------------------------------------------------------------------------

    def _step(self, batches: Sequence[Batch]) -> StepResult:
        set_rates(self.optimiser, self.schedule.rate(self.step))
        self._hold_trunk()
        ramp = self.phase == "ramp" and self.learns
        # In between, gates fold into BatchNorm and cost nothing.
        learning = ramp and self.step // self.round % self.every == 0
        switches = None if self.phase == "warmup" or not self.learns else self.net.switches
        if ramp:
            switches = self.learner.on() if learning else self.learner.on().detach()
        train = self.config.train
        result = forward_backward(
            self.net, batches, switches, train.label_smoothing, train.precision, self.teacher
        )
        result = self._joined(result, switches)
        check_losses(result.loss, self.names, self.where(), self.saved)
        if learning:
            assert switches is not None and switches.grad is not None
            self._learn(switches.detach(), switches.grad, sorted(result.loss))
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        if train.average and self.phase == "settle":
            self.average.update(self.net)
        return result

    def _hold_trunk(self) -> None:
        """Let the shared trunk learn from the start, or only once the switches are fixed."""
        if self.config.train.trunk_from == "settle":
            for parameter in trunk_parameters(self.net):
                parameter.requires_grad_(self.phase == "settle")

    def _joined(self, result: StepResult, switches: torch.Tensor | None) -> StepResult:
        """The step of all ranks together: summed gradients, every domain's figures."""
        if self.ranks.world == 1:
            return result
        self.ranks.sum_gradients(list(self.net.parameters()))
        if switches is not None and switches.grad is not None:
            self.ranks.sum([switches.grad])
        count = len(self.net.classes)
        return StepResult(
            self.ranks.merge(result.loss, count), self.ranks.merge(result.accuracy, count)
        )

    def _learn(self, on: torch.Tensor, gradient: torch.Tensor, domains: Sequence[int]) -> None:
        self.cost_share = None
        charge = self.pressure.charge(on, self.schedule.target(self.step), self.budget.share)
        if isinstance(self.learner, PaperLearner):
            self.learner.rate = self.schedule.switch_rate(self.step)
            self.learner.update(gradient, charge)
        else:  # in units of the mean price of a unit
            self.learner.update(gradient, charge * on.shape[1], domains)

    def _figures(self, result: StepResult) -> dict[str, float]:
        names = self.names
        figures = {f"loss/{names[d]}": v for d, v in result.loss.items()}
        figures |= {f"train_accuracy/{names[d]}": v for d, v in result.accuracy.items()}
        if self.cost_share is None:  # a GPU would wait for it at every step
            self.cost_share = self.budget.pricer.of(self.alive()) / self.budget.full
        figures["cost"] = self.cost_share
        figures["target"] = self.schedule.target(self.step)
        figures["lambda"] = self.pressure.sharing.value
        if self.config.train.budgets_domains:
            each = zip(names, self.pressure.domains, strict=True)
            figures |= {f"lambda/{name}": m.value for name, m in each}
        figures["returned"] = float(self.learner.returned)
        return figures


def _first(steps: Iterator[list[Batch]], count: int) -> Iterator[list[Batch]]:
    for _, batches in zip(range(count), steps, strict=False):
        yield batches
