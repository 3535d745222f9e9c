"""The state of a run and its phases: warm-up, ranking, ramp, cut, settling."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import islice

import numpy as np
import torch

from prunion.trainer.config import Phase, RunConfig
from prunion.trainer.cost import PricedBudget, select_union, used_cost
from prunion.trainer.data import Batch, JointBatches
from prunion.trainer.learning.interrupt import StopRequest
from prunion.trainer.learning.measuring import came_back, importance_of
from prunion.trainer.learning.norms import RunNorms
from prunion.trainer.learning.optimiser import WeightAverage, hold_trunk, make_optimiser, set_rates
from prunion.trainer.learning.own import keep_switches, own_shortfall, thins_at_the_cut
from prunion.trainer.learning.step import (
    LossScale,
    SharedSteps,
    StepResult,
    add_penalty,
    added,
    check_losses,
    check_network,
    forward_backward,
    load_teacher,
)
from prunion.trainer.network import DomainNet
from prunion.trainer.processes import ALONE, Processes, channels_last, switch_device
from prunion.trainer.pruning import Recipe, make_recipe

__all__ = ["Training"]

log = logging.getLogger(__name__)
Report = Callable[[dict[str, float]], None]


class Training:
    """A run in progress; `run_epoch` moves it on by one epoch."""

    def __init__(
        self,
        config: RunConfig,
        net: DomainNet,
        batches: JointBatches,
        budget: PricedBudget,
        processes: Processes = ALONE,
        recipe: Recipe | None = None,
        origin: str = "",
        importance: np.ndarray | None = None,
    ) -> None:
        """A run before its first step.

        Args:
            recipe: how switches learn; without it as `config` says.
            origin: digest of the finished network that the run builds on, hex; empty without one.
            importance: what ranks the units, `[U]`; without it each domain's own is measured.
        """
        self.config, self.net, self.batches, self.budget = config, net, batches, budget
        self.processes, self.origin, self.importance = processes, origin, importance
        if config.train.compile:
            net.trunk.compile()
        channels_last(net)
        self.home = switch_device(net.switches.device)
        self.loss_scale = LossScale(config.train.precision)
        self.recipe = recipe or self._named_recipe()
        self.schedule, self.learner = self.recipe.schedule, self.recipe.learner
        self.pressure = self.recipe.pressure
        self.optimiser = make_optimiser(config.train, net, batches.images)
        self.shared = SharedSteps(net, processes, config.train)
        self.names = [d.name for d in config.domains]
        classes = dict(zip(self.names, batches.classes, strict=True))
        if net.adapter is not None:
            net.adapter.keep_to(budget.allowed, budget.full)
        self.teacher = load_teacher(config, classes, net.switches.device)
        self.norms = RunNorms(net, batches, config.train, self.schedule, self._share_statistics)
        self.average = WeightAverage(config.train.average * batches.steps_per_epoch)
        self.epoch = self.step = 0
        self.behind = (0, 0)  # steps and epochs of the part of the run before it, in what is told
        self.phase: Phase = "warmup"
        self.saved = "no state was saved yet"  # for a message when the loss breaks
        self.cost_share: float | None = None  # that the switches leave; None: to be counted again
        self.uncut = 1.0  # share of the cost that learning left, before the cut
        self.thinned = False  # whether domains have chosen anew since, each within the union

    def run_epoch(
        self, report: Report, stop: StopRequest | None = None, until: int | None = None
    ) -> None:
        """Train to the end of the epoch, to `until` steps of the run, or until `stop` is set.

        `report` gets every step's figures. An epoch that was stopped goes on where it was.
        """
        self.net.train()
        start = self.step - self.epoch * self.batches.steps_per_epoch
        for batches in self.batches.epoch(self.epoch, start):
            self._enter(self.schedule.phase(self.step))
            result = self._step(batches)
            report(self._figures(result))
            self.step += 1
            # All processes ask, or one would leave and the others wait for it in the next step.
            if self.processes.any(bool(stop)) or self.step == until:
                break
        self._share_statistics()
        check_network(self.net, self.config.train, self.where(), self.saved, origin=self.origin)
        if self.step < (self.epoch + 1) * self.batches.steps_per_epoch:
            return
        self.epoch += 1
        if self.step >= self.schedule.total:
            self._enter("settle")  # a run without settling is cut now
            self._advance()
            self.average.move_into(self.net)
            if not self.norms.fit(self.step):
                self.norms.estimate(self.step, self.epoch)

    def where(self) -> str:
        """The step and epoch, for messages."""
        steps, epochs = self.behind
        return f"step {steps + self.step}, epoch {epochs + self.epoch}"

    def alive(self) -> np.ndarray:
        """Units that at least one domain uses, `[U]` bool."""
        return (self.switches() > 0).any(0).cpu().numpy()

    def switches(self) -> torch.Tensor:
        """The switches as they are now, 0/1 `[D, U]`."""
        if self.phase == "ramp" and self.recipe.learns:
            return self.recipe.chosen().to(self.net.switches.device)
        return self.net.switches

    def choices(self) -> torch.Tensor:
        """What each domain chose for itself of the channels that are kept, 0/1 `[D, U]`."""
        own = self.config.train.cut == "domains" or thins_at_the_cut(self.config)
        if self.phase != "settle" or not self.recipe.learns or own or self.thinned:
            return self.switches()
        return self.recipe.chosen().to(self.net.switches.device) * self.net.switches.amax(0)

    def fitted_norms(self, *, gated: bool = True) -> AbstractContextManager[None]:
        """Inside, BatchNorm's statistics fit the network, `gated` or not; a run's first do not."""
        if self.norms.fit(self.step):
            return nullcontext()
        switches = self.switches().detach() if gated else None
        return self.norms.estimated(self.step, self.epoch, switches, gated=gated)

    def _cost_share(self) -> float:
        return used_cost(self.budget.pricer, self.alive(), self.net.adapter) / self.budget.full

    # --- phases -----------------------------------------------------------------------------

    def _named_recipe(self) -> Recipe:
        """The recipe of the run file, for this network and budget."""
        net, budget = self.net, self.budget
        domains, units = net.switches.shape

        def select(
            worth: np.ndarray, used: np.ndarray | None, share: float | None = None
        ) -> np.ndarray:
            allowed = max(budget.allowed, (share or 0) * budget.full)
            return select_union(worth, replace(budget, allowed=allowed), used)

        return make_recipe(
            self.config.train,
            budget.pricer.cost_model().to(self.home),
            select,
            beta=budget.share,
            domains=domains,
            units=units,
            steps_per_epoch=self.batches.steps_per_epoch,
            turns_per_epoch=self.batches.turns_per_epoch,
            slices=sum(x.shape[0] * x.shape[1] for x in net.units.table.layers if x.shape[1:]),
            device=self.home,
        )

    def _enter(self, phase: Phase) -> None:
        if phase == self.phase:
            return
        if self.phase == "warmup" and self.recipe.learns and self.recipe.ranked:
            self._rank()
        self.uncut = self._cost_share() if phase == "settle" else self.uncut
        if phase == "settle" and self.recipe.learns:
            keep_switches(self.net, self.recipe.cut(), self.config, self.learner.scores)
            short = own_shortfall(self.config, self.net)
            if short and self.processes.first:
                log.warning(short)
            self.norms.fix(self.step, self.epoch)
        self.phase = phase
        self.cost_share = None

    def _share_statistics(self) -> None:
        """What the processes have apart: statistics of their domains or slices, and rounding."""
        self.processes.copy_from_first(self.optimiser.moved_as_matrices())
        buffers = dict(self.net.trunk.named_buffers())
        statistics = [v for k, v in buffers.items() if k.endswith(("running_mean", "running_var"))]
        statistics += self.average.statistics()
        if not self.processes.slices:
            self.processes.share_rows(statistics)
        elif not self.config.train.sync_norms:  # else they are the same everywhere
            self.processes.average(statistics)

    def _rank(self) -> None:
        """Find out how much each domain's loss reacts to each switch, and place the scores."""
        if self.importance is not None:
            given = torch.from_numpy(self.importance).to(self.net.switches)
            self.recipe.start(given.expand_as(self.net.switches).to(self.home, copy=True))
            return
        steps = islice(self.batches.epoch(self.epoch, joint=True), self.recipe.ranking_steps)
        precision = self.config.train.precision
        whole = self.recipe.starts_whole
        parts = (self.batches.parts(step) for step in steps)
        importance = importance_of(self.net, parts, precision, self.processes, whole=whole)
        self.recipe.start(importance.to(self.home))
        self.processes.copy_from_first([self.learner.scores])  # where they are drawn

    # --- steps ------------------------------------------------------------------------------

    def _step(self, batches: Sequence[Batch]) -> StepResult:
        set_rates(self.optimiser, self.schedule, self.step)
        hold_trunk(self.net, self.config.train, self.phase)
        self._advance()
        recipe = self.recipe
        fixed = not recipe.learns and bool(self.net.switches.all())
        whole = fixed or (self.phase == "warmup" and recipe.starts_whole)
        switches = None if whole else self.switches()
        learning = recipe.learns and self.phase == "ramp" and recipe.learns_at(self.step)
        if learning and switches is not None:  # else gates fold into BatchNorm and cost nothing
            switches.requires_grad_()
        result = self._forward_backward(batches, switches)
        own = [p.grad for p in self.net.parameters()]
        finite = self.loss_scale.unscale([*own, None if switches is None else switches.grad])
        train, images, share = self.config.train, self.batches.images, self.shared.penalty_share
        add_penalty(self.net, batches, images, self.phase, self.optimiser, share=share)
        result = self.shared.joined(result, switches)
        check_losses(result.loss, self.names, train, self.where(), self.saved, origin=self.origin)
        taken = self.loss_scale.takes(self.processes, finite=finite, where=self.where())
        if taken and learning:
            assert switches is not None and switches.grad is not None
            self.cost_share = None
            on, gradient = switches.detach().to(self.home), switches.grad.to(self.home)
            recipe.learn(self.step, on, gradient, sorted(result.loss))
        if taken:
            self._move(sorted(result.loss))
        self.optimiser.zero_grad(set_to_none=True)
        if train.average and self.phase == "settle":
            self.average.update(self.net)
        return result

    def _move(self, domains: Sequence[int]) -> None:
        """Move what learns; what is an absent domain's own stands still."""
        self.optimiser.present = None if self.config.train.order == "joint" else domains
        adapter = self.net.adapter
        before = adapter.slices() if adapter is not None and adapter.choosing else {}
        self.optimiser.step()
        if adapter is not None:
            adapter.stepped(domains)
            if adapter.choosing:
                self.cost_share = None
                self.learner.returned += came_back(before, adapter.slices())

    def _advance(self) -> None:
        """Tell the method's adapter whose turn it is and in which phase."""
        if (adapter := self.net.adapter) is None:
            return
        if self.schedule.turns and self.step in self.schedule.starts:
            self.optimiser.forget(adapter.parameters())  # the last task's momentum
        weights = dict(self.net.trunk.named_parameters())
        if adapter.advance(weights, self.schedule.task(self.step), self.phase):
            self.net.drop_units(adapter.dead_units())
            self.cost_share = None
            self.norms.fix(self.step, self.epoch)

    def _forward_backward(
        self, batches: Sequence[Batch], switches: torch.Tensor | None
    ) -> StepResult:
        """In as many parts as the run says; gradients add up."""
        parts, train = self.batches.parts(batches), self.config.train
        step = partial(
            forward_backward,
            smoothing=train.label_smoothing,
            precision=train.precision,
            teacher=self.teacher,
            scale=self.loss_scale.value,
        )
        results = []
        for number, part in enumerate(parts, 1):
            with self.shared.exchange(last=number == len(parts)) as through:
                results.append(step(self.net, part, switches, through=through))
        return added(results)

    def _figures(self, result: StepResult) -> dict[str, float]:
        figures = {f"loss/{self.names[d]}": v for d, v in result.loss.items()}
        figures |= {f"train_accuracy/{self.names[d]}": v for d, v in result.accuracy.items()}
        if self.cost_share is None:  # a GPU would wait for it at every step
            self.cost_share = self._cost_share()
        told = {"target": self.schedule.target(self.step), "returned": float(self.learner.returned)}
        return figures | {"cost": self.cost_share} | told | self.pressure.figures(self.names)
