"""Recipes that rank the units and cut them without learning switches.

They tell what learning adds: epochs and learning rates are those of prunion's own recipe, only the
switches are not learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from prunion.trainer.config import Ranking
from prunion.trainer.cost import Cost
from prunion.trainer.pruning.cut import Select, cut_each, cut_together, ranked_worth
from prunion.trainer.pruning.learners import SwitchLearner
from prunion.trainer.pruning.recipe_base import Recipe

__all__ = ["OnceRecipe"]


@dataclass(frozen=True, eq=False)
class OnceRecipe(Recipe):
    """Warm up, rank, cut to the budget at once, train on with fixed switches.

    Attributes:
        ranking: what a unit is worth to a domain; the domains' worths are added up.
        cost: of how much of each unit is kept, as a share of the backbone's.
        select: what the budget keeps of the units.
        each: cut every domain alone, as if it were the only one; otherwise all to the same units.
    """

    learner: SwitchLearner
    ranking: Ranking = field(kw_only=True)
    cost: Cost = field(kw_only=True)
    select: Select = field(kw_only=True)
    each: bool = field(kw_only=True)

    def start(self, importance: torch.Tensor) -> None:
        """The scores are the worths."""
        self.learner.scores = ranked_worth(self.ranking, importance, self.cost)

    def chosen(self) -> torch.Tensor:
        """Everything: no domain has chosen anything for itself, 0/1 `[D, U]`."""
        return torch.ones_like(self.learner.scores)

    def learn(
        self, step: int, on: torch.Tensor, gradient: torch.Tensor, domains: Sequence[int]
    ) -> None:
        """Never: there is no ramp."""
        raise NotImplementedError("switches that are cut at once do not learn")

    def cut(self) -> torch.Tensor:
        """To the budget."""
        if self.each:
            return cut_each(self.learner.scores, self.select)
        return cut_together(self.learner.scores, self.select)
