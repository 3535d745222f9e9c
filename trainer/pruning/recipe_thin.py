"""The recipe that thins each domain within the channels that a finished network keeps.

The union stays as it is, and so does the trunk: each domain learns, as if it were the only one,
which of the kept channels it can do without. The budget loss of each domain is eq. 4 of dos Santos,
Berriel, Oliveira-Santos, Sebe and Almeida 2023, "Budget-Aware Pruning: Handling Multiple Domains
with Less Parameters", arXiv:2309.11464, its cost a share of the union's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from prunion.trainer.cost import Cost
from prunion.trainer.pruning.cut import Select, cut_each, ranked_worth
from prunion.trainer.pruning.learners import SwitchLearner, order_in_rows
from prunion.trainer.pruning.pace import Pace
from prunion.trainer.pruning.recipe_base import Recipe

__all__ = ["ThinRecipe"]


@dataclass(frozen=True, eq=False)
class ThinRecipe(Recipe):
    """Rank each domain's channels, tighten its own budget along the ramp, cut it to that.

    Attributes:
        kept: numbers of the units that the network keeps, int64 `[K]`; the learner has these only.
        units: U, how many the backbone has.
        cost: of how much of each unit is kept, as a share of the union's.
        select: what a domain's own budget keeps of the units.
        pace: at which steps the switches learn.
    """

    learner: SwitchLearner
    kept: torch.Tensor = field(kw_only=True)
    units: int = field(kw_only=True)
    cost: Cost = field(kw_only=True)
    select: Select = field(kw_only=True)
    pace: Pace = field(kw_only=True)

    def start(self, importance: torch.Tensor) -> None:
        """In the order of importance per cost, which each domain pays for itself."""
        union = importance.new_zeros(self.units).index_fill(0, self.kept, 1.0)
        worth = ranked_worth("importance-per-cost", importance, self.cost, union)
        self.learner.start(importance[:, self.kept])
        self.learner.scores = order_in_rows(worth[:, self.kept])

    def learns_at(self, step: int) -> bool:
        """Every few rounds, as in `OwnRecipe`."""
        return self.pace.learns_at(step)

    def chosen(self) -> torch.Tensor:
        """What each domain has on, 0/1 `[D, U]`."""
        return self._spread((self.learner.scores > 0).float(), 0.0)

    def learn(
        self, step: int, on: torch.Tensor, gradient: torch.Tensor, domains: Sequence[int]
    ) -> None:
        """By each domain's own loss, and the price of its own budget."""
        target, beta = self.schedule.target(step), self.schedule.beta
        charge = self.pressure.charge(on, target, beta, domains)[:, self.kept]
        self.learner.update(gradient[:, self.kept], charge * len(self.kept), domains)

    def cut(self) -> torch.Tensor:
        """Each domain to its own budget."""
        return cut_each(self._spread(self.learner.scores, -1.0), self.select)

    def _spread(self, values: torch.Tensor, others: float) -> torch.Tensor:
        """Values `[D, K]` at their units, `others` at those that the network lacks: `[D, U]`."""
        rows = values.new_full((len(values), self.units), others)
        return rows.index_copy(1, self.kept, values)
