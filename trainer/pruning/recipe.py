"""A recipe: when the switches learn, by which rule, under which pressure, and how they are cut.

There are three: prunion's own; that of dos Santos, Berriel, Oliveira-Santos, Sebe and Almeida 2023,
"Budget-Aware Pruning: Handling Multiple Domains with Less Parameters", arXiv:2309.11464, kept to
compare with; and the one for a domain that joins a finished network. Whoever holds a recipe need
not ask which it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from prunion.trainer.config import TrainConfig
from prunion.trainer.cost import Cost
from prunion.trainer.pruning.learners import Learner, PaperLearner, SwitchLearner, order_in_rows
from prunion.trainer.pruning.multipliers import Pressure
from prunion.trainer.pruning.schedule import Schedule

__all__ = [
    "LaterRecipe",
    "OwnRecipe",
    "PaperRecipe",
    "Recipe",
    "Select",
    "cut_each",
    "cut_union",
    "later_recipe",
    "make_recipe",
]


# Worth of each unit `[U]`, and which may be kept `[U]` (None: all) → those the budget keeps `[U]`.
Select = Callable[[np.ndarray, np.ndarray | None], np.ndarray]


def cut_union(
    scores: torch.Tensor, select: Select, *, only_used: bool, opens: bool
) -> torch.Tensor:
    """Cut the union of all domains to the budget: the switches that are left, 0/1 `[D, U]`.

    Args:
        scores: `[D, U]`; a domain uses a unit where its score is positive.
        select: what the budget keeps.
        only_used: False fills what is left of the budget with units that nobody uses.
        opens: every domain gets all units that are kept, whatever it chose.
    """
    # What all domains together gain from a unit. Where nobody uses it, who came nearest decides.
    worth = scores.clamp(min=0).sum(0) + 1e-3 * scores.max(0).values
    used = (scores > 0).any(0).cpu().numpy() if only_used else None
    kept = torch.from_numpy(select(worth.cpu().numpy(), used)).to(scores)
    if opens:
        return kept.expand_as(scores)
    chosen = (scores > 0).float() * kept
    # What nobody chose, what fills the budget or a multiple, is everybody's.
    return torch.where(chosen.amax(0) > 0, chosen, kept)


def cut_each(scores: torch.Tensor, select: Select) -> torch.Tensor:
    """Cut each domain to the budget as if it were the only one, 0/1 `[D, U]`."""
    rows = scores.cpu().numpy()
    return torch.stack([torch.from_numpy(select(row, row > 0)).to(scores) for row in rows])


LEAST_UPDATES = 72  # of the switches in a ramp


@dataclass(frozen=True, eq=False)
class Recipe(ABC):
    """How the switches of a run learn.

    Attributes:
        schedule: the phases, and the budget and the rates at each step.
        learner: the scores of the switches, and the rule that moves them.
        pressure: what the budget and the sharing loss charge each switch.
        learns: False where the budget leaves nothing to cut: every switch stays on.
        starts_whole: True if warm-up has every switch on, False if as the network comes.
        ranked: whether `start` wants to know each switch's importance before the ramp.
    """

    schedule: Schedule
    learner: Learner
    pressure: Pressure
    learns: bool = field(default=True, kw_only=True)
    starts_whole: bool = field(default=True, kw_only=True)
    ranked: bool = field(default=False, kw_only=True)

    def start(self, importance: torch.Tensor) -> None:
        """Place the scores before the ramp, knowing the switches' importance `[D, U]`."""
        raise NotImplementedError("a recipe that ranks says how")

    def learns_at(self, step: int) -> bool:
        """Whether the switches learn at this step of the ramp."""
        return True

    def chosen(self) -> torch.Tensor:
        """What each domain has on, 0/1 `[D, U]`."""
        return (self.learner.scores > 0).float()

    @abstractmethod
    def learn(
        self, step: int, on: torch.Tensor, gradient: torch.Tensor, domains: Sequence[int]
    ) -> None:
        """Move the scores once.

        Args:
            on: the switches of the step, 0/1 `[D, U]`.
            gradient: of the domains' losses by them, `[D, U]`.
            domains: whose images the step had.
        """

    @abstractmethod
    def cut(self) -> torch.Tensor:
        """The switches that stay for good, 0/1 `[D, U]`."""


@dataclass(frozen=True, eq=False)
class OwnRecipe(Recipe):
    """prunion's: warm up, rank, tighten the budget along a ramp, fill what the cut leaves of it.

    Attributes:
        ranking: what orders the scores before the ramp, `importance` or `random`.
        select: what the budget keeps of the units.
        each: cut every domain alone, as if it were the only one.
        opens: every domain settles with all units that are kept.
        every: the switches learn at one of so many rounds.
        round: steps of a round.
    """

    learner: SwitchLearner
    ranking: str = field(kw_only=True)
    select: Select = field(kw_only=True)
    each: bool = field(kw_only=True)
    opens: bool = field(kw_only=True)
    every: int = field(kw_only=True)
    round: int = field(kw_only=True)

    def start(self, importance: torch.Tensor) -> None:
        """In the order of importance, or at random with the same step sizes."""
        self.learner.start(importance)
        if self.ranking == "random":
            self.learner.scores = order_in_rows(torch.rand_like(importance))

    def learns_at(self, step: int) -> bool:
        """Every few rounds: learning gates cost more than fixed ones, and λ has time to follow."""
        return step // self.round % self.every == 0

    def learn(
        self, step: int, on: torch.Tensor, gradient: torch.Tensor, domains: Sequence[int]
    ) -> None:
        """The learner wants charges in units of the mean price of a unit."""
        charge = self.pressure.charge(on, self.schedule.target(step), self.schedule.beta)
        self.learner.update(gradient, charge * on.shape[1], domains)

    def cut(self) -> torch.Tensor:
        """To the budget, which also units that nobody chose may fill."""
        if self.each:
            return cut_each(self.learner.scores, self.select)
        return cut_union(self.learner.scores, self.select, only_used=False, opens=self.opens)


@dataclass(frozen=True, eq=False)
class PaperRecipe(Recipe):
    """The paper's: the whole budget from the first step on, nothing kept that nobody uses.

    Attributes:
        select, each, opens: as in `OwnRecipe`.
    """

    learner: PaperLearner
    select: Select = field(kw_only=True)
    each: bool = field(kw_only=True)
    opens: bool = field(kw_only=True)

    def learn(
        self, step: int, on: torch.Tensor, gradient: torch.Tensor, domains: Sequence[int]
    ) -> None:
        """Every domain's switches move, whosever images the step had."""
        charge = self.pressure.charge(on, self.schedule.target(step), self.schedule.beta)
        self.learner.rate = self.schedule.switch_rate(step)
        self.learner.update(gradient, charge)

    def cut(self) -> torch.Tensor:
        """To the budget, where the losses left more than that."""
        if self.each:
            return cut_each(self.learner.scores, self.select)
        return cut_union(self.learner.scores, self.select, only_used=True, opens=self.opens)


@dataclass(frozen=True, eq=False)
class LaterRecipe(Recipe):
    """A domain that joins a finished network: it may do without units, and gets no new ones.

    There is no budget to meet: what the network keeps is paid for.

    Attributes:
        kept: numbers of the units that the network keeps, int64 `[K]`; the learner has these only.
        units: U, how many there were.
    """

    learner: SwitchLearner
    kept: torch.Tensor = field(kw_only=True)
    units: int = field(kw_only=True)

    def chosen(self) -> torch.Tensor:
        """What the domain has on, 0/1 `[1, U]`."""
        on = (self.learner.scores > 0).float()
        return on.new_zeros(len(on), self.units).index_copy(1, self.kept, on)

    def learn(
        self, step: int, on: torch.Tensor, gradient: torch.Tensor, domains: Sequence[int]
    ) -> None:
        """By the domain's own loss alone."""
        gradient = gradient[:, self.kept]
        self.learner.update(gradient, torch.zeros_like(gradient))

    def cut(self) -> torch.Tensor:
        """What the domain chose: nothing has to go."""
        return self.chosen()


def make_recipe(
    train: TrainConfig,
    cost: Cost,
    select: Select,
    *,
    beta: float,
    domains: int,
    units: int,
    steps_per_epoch: int,
    device: torch.device | None = None,
) -> Recipe:
    """The recipe that `[train]` names.

    Args:
        cost: of how much of each unit is kept, as a share of the backbone's.
        select: what the budget keeps of the units.
        beta: the allowed share of the cost, 0 … 1.
    """
    warmup, ramp, settle = _phases(train, steps_per_epoch)
    each, opens = train.cut == "domains", train.settle_with == "union"
    if train.recipe == "paper":
        return PaperRecipe(
            Schedule(0, warmup + ramp, settle, beta, steps_down=True),
            PaperLearner(domains, units, device),
            Pressure(train, cost, domains, plain=True),
            select=select,
            each=each,
            opens=opens,
        )
    # What is kept is in the file anyway. Without settling, though, nothing would adapt to it.
    opens = opens or (train.settle_with == "auto" and not each and settle > 0)
    # One domain a step: the switches of all of them take so many turns.
    turns = 1 if train.order == "joint" else domains
    # A short ramp needs every step: too few updates overshoot and cut what matters.
    every = max(1, min(train.switch_every, ramp // (LEAST_UPDATES * turns)))
    travel = train.switch_travel * every * turns / max(1, ramp)
    return OwnRecipe(
        Schedule(warmup, ramp, settle, beta),
        SwitchLearner(domains, units, travel, device),
        Pressure(replace(train, switch_every=every), cost, domains, turns),
        learns=beta < 1,
        ranked=True,
        ranking=train.ranking,
        select=select,
        each=each,
        opens=opens,
        every=every,
        # One batch of each domain in turn: all of them learn, or `every` could meet the same ones.
        round=domains if train.order == "batch" else 1,
    )


def later_recipe(
    train: TrainConfig, cost: Cost, kept: torch.Tensor, steps_per_epoch: int
) -> LaterRecipe:
    """The recipe of one domain that joins a network which keeps the units `kept`, `[U]` bool."""
    schedule = Schedule(*_phases(train, steps_per_epoch), beta=1.0)
    numbers = kept.nonzero().flatten()
    nothing = replace(train, sharing="none", domain_budget=False)
    return LaterRecipe(
        schedule,
        SwitchLearner(1, len(numbers), 1.0 / max(1, schedule.ramp), kept.device),
        Pressure(nothing, cost, 1),
        starts_whole=False,
        kept=numbers,
        units=len(kept),
    )


def _phases(train: TrainConfig, steps_per_epoch: int) -> tuple[int, int, int]:
    warmup, ramp, settle = (n * steps_per_epoch for n in (train.warmup, train.ramp, train.settle))
    return warmup, ramp, settle
