"""A recipe: when the switches learn, by which rule, under which pressure, and how they are cut.

Here are prunion's own; that of dos Santos, Berriel, Oliveira-Santos, Sebe and Almeida 2023,
"Budget-Aware Pruning: Handling Multiple Domains with Less Parameters", arXiv:2309.11464, kept to
compare with; and the one for a domain that joins a finished network. `rank_and_cut.py` has those
that learn no switches. Whoever holds a recipe need not ask which it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from prunion.trainer.config import STEEP, Ranking, TrainConfig
from prunion.trainer.cost import Cost
from prunion.trainer.pruning.cut import Select, cut_each, cut_union, ranked_worth
from prunion.trainer.pruning.learners import PaperLearner, SwitchLearner, order_in_rows
from prunion.trainer.pruning.multipliers import Pressure
from prunion.trainer.pruning.pace import Pace, pace_of
from prunion.trainer.pruning.rank_and_cut import GreedyRecipe, OnceRecipe
from prunion.trainer.pruning.recipe_base import Recipe
from prunion.trainer.pruning.recipe_thin import ThinRecipe
from prunion.trainer.pruning.schedule import Schedule

__all__ = [
    "LaterRecipe",
    "OwnRecipe",
    "PaperRecipe",
    "later_recipe",
    "make_recipe",
    "thin_recipe",
]

LONG_RANKING = 96  # steps: what is cut at once never comes back


@dataclass(frozen=True, eq=False)
class OwnRecipe(Recipe):
    """prunion's: warm up, rank, tighten the budget along a ramp, fill what the cut leaves of it.

    Attributes:
        ranking: what orders the scores before the ramp.
        cost: of how much of each unit is kept, as a share of the backbone's.
        select: what the budget keeps of the units.
        each: cut every domain alone, as if it were the only one.
        opens: every domain settles with all units that are kept.
        pace: at which steps the switches learn.
    """

    learner: SwitchLearner
    ranking: Ranking = field(kw_only=True)
    cost: Cost = field(kw_only=True)
    select: Select = field(kw_only=True)
    each: bool = field(kw_only=True)
    opens: bool = field(kw_only=True)
    pace: Pace = field(kw_only=True)

    def start(self, importance: torch.Tensor) -> None:
        """In the order of the ranking; the step sizes are those of importance."""
        self.learner.start(importance)
        worth = ranked_worth(self.ranking, importance, self.cost)
        self.learner.scores = order_in_rows(worth)

    def learns_at(self, step: int) -> bool:
        """Every few rounds: learning gates cost more than fixed ones, and λ has time to follow."""
        return self.pace.learns_at(step)

    def learn(
        self, step: int, on: torch.Tensor, gradient: torch.Tensor, domains: Sequence[int]
    ) -> None:
        """The learner wants charges in units of the mean price of a unit."""
        target, beta = self.schedule.target(step), self.schedule.beta
        charge = self.pressure.charge(on, target, beta, domains)
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
        """The sharing loss moves every domain's switches, whosever images the step had (eq. 5).

        Without one, as BA² has none, each domain is for itself.
        """
        moved = domains if self.pressure.config.sharing == "none" else None
        charge = self.pressure.charge(on, self.schedule.beta, self.schedule.beta, domains)
        self.learner.rate = self.schedule.switch_rate(step)
        self.learner.update(gradient, charge, moved)

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
    turns_per_epoch: Sequence[int] = (),
    slices: int | None = None,
    device: torch.device | None = None,
) -> Recipe:
    """The recipe that `[train]` names.

    Args:
        cost: of how much of each unit is kept, as a share of the backbone's.
        select: what the budget keeps of the units.
        beta: the allowed share of the cost, 0 … 1.
        turns_per_epoch: steps of one epoch of each domain's own, where they learn in turns.
        slices: pairs of a filter and an input channel in all layers, which the paper has a switch
            for each; as many as `units` by default.
    """
    warmup, ramp, settle = _phases(train, steps_per_epoch)
    each, opens = train.cut == "domains", train.settle_with == "union"
    drops, geometric = _drops(train, steps_per_epoch), _is_geometric(train, beta)
    if train.recipe == "paper":
        per_unit = 1.0 if slices is None else slices / units
        return PaperRecipe(
            Schedule(0, warmup + ramp, settle, beta, steps_down=True, drops=drops),
            PaperLearner(domains, units, train.switch_lr, device),
            Pressure(train, cost, domains, plain=True, slices=per_unit),
            learns=train.traits.prunes,  # slices learn beside the network's other parameters
            select=select,
            each=each,
            opens=opens,
        )
    if train.recipe == "once":
        return OnceRecipe(
            Schedule(warmup, ramp, settle, beta, cuts_at_once=True),
            SwitchLearner(domains, units, 0.0, device),
            Pressure(train, cost, domains, free=True),
            learns=beta < 1,
            ranked=True,
            ranking_steps=LONG_RANKING,
            ranking=_ranking(train),
            cost=cost,
            select=select,
            each=each,
        )
    if train.recipe == "greedy":
        return GreedyRecipe(
            Schedule(warmup, ramp, settle, beta, geometric=geometric),
            SwitchLearner(domains, units, 0.0, device),
            Pressure(train, cost, domains, free=True),
            learns=beta < 1,
            ranked=True,
            ranking=_ranking(train),
            cost=cost,
            select=select,
            each=each,
        )
    # What is kept is in the file anyway. Without settling, though, nothing would adapt to it.
    opens = opens or (train.settle_with == "auto" and not each and settle > 0)
    pace = pace_of(train, ramp, domains)
    schedule = Schedule(warmup, ramp, settle, beta, drops=drops, geometric=geometric)
    if turns_per_epoch:
        own = ((_phases(train, n), _drops(train, n)) for n in turns_per_epoch)
        turns = [Schedule(*x, beta, drops=drops, geometric=geometric) for x, drops in own]
        schedule = Schedule.of_turns(turns)
    return OwnRecipe(
        schedule,
        SwitchLearner(domains, units, pace.travel, device),
        Pressure(train, cost, domains, pace.turns, every=pace.every),
        learns=beta < 1 and train.traits.prunes,
        ranked=True,
        ranking=_ranking(train),
        cost=cost,
        select=select,
        each=each,
        opens=opens,
        pace=pace,
    )


def later_recipe(
    train: TrainConfig, cost: Cost, kept: torch.Tensor, steps_per_epoch: int
) -> LaterRecipe:
    """The recipe of one domain that joins a network which keeps the units `kept`, `[U]` bool."""
    schedule = Schedule(*_phases(train, steps_per_epoch), beta=1.0)
    numbers = kept.nonzero().flatten()
    return LaterRecipe(
        schedule,
        SwitchLearner(1, len(numbers), 1.0 / max(1, schedule.ramp), kept.device),
        Pressure(train, cost, 1, free=True),
        starts_whole=False,
        kept=numbers,
        units=len(kept),
    )


def thin_recipe(
    train: TrainConfig,
    cost: Cost,
    select: Select,
    kept: torch.Tensor,
    *,
    share: float,
    domains: int,
    steps_per_epoch: int,
) -> ThinRecipe:
    """The recipe that thins each domain of a network that keeps the units `kept`, `[U]` bool.

    Args:
        cost: as a share of the union's.
        share: of that cost, what a domain may use.
        select: what a domain's own budget keeps.
    """
    phases, geometric = _phases(train, steps_per_epoch), _is_geometric(train, share)
    schedule = Schedule(*phases, beta=share, geometric=geometric)
    pace, numbers = pace_of(train, schedule.ramp, domains), kept.nonzero().flatten()
    return ThinRecipe(
        schedule,
        SwitchLearner(domains, len(numbers), pace.travel, kept.device),
        Pressure(train, cost, domains, pace.turns, every=pace.every),
        starts_whole=False,
        ranked=True,
        kept=numbers,
        units=len(kept),
        cost=cost,
        select=select,
        pace=pace,
    )


def _is_geometric(train: TrainConfig, beta: float) -> bool:
    shapes = ("auto", "geometric") if beta < STEEP - 1e-6 else ("geometric",)  # β is rounded
    return train.ramp_shape in shapes


def _ranking(train: TrainConfig) -> Ranking:
    """What orders channels: by their importance, where a run's budget has not decided."""
    return "importance" if train.ranking == "auto" else train.ranking


def _drops(train: TrainConfig, steps_per_epoch: int) -> tuple[int, ...]:
    return () if train.drops == "auto" else tuple(n * steps_per_epoch for n in train.drops)


def _phases(train: TrainConfig, steps_per_epoch: int) -> tuple[int, int, int]:
    warmup, ramp, settle = (n * steps_per_epoch for n in (train.warmup, train.ramp, train.settle))
    return warmup, ramp, settle
