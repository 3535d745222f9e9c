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
from prunion.trainer.pruning.cut import Select, cut_each, cut_together, ranked_worth, shrink
from prunion.trainer.pruning.learners import SwitchLearner
from prunion.trainer.pruning.recipe_base import Recipe

__all__ = ["GreedyRecipe", "OnceRecipe"]

STAGE = 24  # steps that tell the next cut


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


@dataclass(frozen=True, eq=False)
class GreedyRecipe(Recipe):
    """Cut a little at a time along the ramp, each time by the importance of the steps since.

    What was cut never comes back. Of the learner only its state is used: the scores are 1 where a
    unit is kept and 0 where not, `square` adds up the squares of ∂L/∂s, `steps` counts them, and
    `mean` is their mean over the stage before.

    Attributes:
        ranking, cost, select, each: as in `OnceRecipe`.
    """

    learner: SwitchLearner
    ranking: Ranking = field(kw_only=True)
    cost: Cost = field(kw_only=True)
    select: Select = field(kw_only=True)
    each: bool = field(kw_only=True)

    def start(self, importance: torch.Tensor) -> None:
        """The ranking after warm-up tells the first cut."""
        self.learner.square = importance.square() * STAGE
        self.learner.steps.fill_(STAGE)

    def learn(
        self, step: int, on: torch.Tensor, gradient: torch.Tensor, domains: Sequence[int]
    ) -> None:
        """Cut to what is allowed now, once every domain has had the steps of a stage."""
        rows = list(domains)
        if int(self.learner.steps.min()) >= STAGE:
            self.learner.scores = self._shrunk(self.schedule.target(step))
            self.learner.mean = self.learner.square / self.learner.steps
            self.learner.square.zero_()
            self.learner.steps.zero_()
        self.learner.square[rows] += gradient[rows].square()
        self.learner.steps[rows] += 1

    def cut(self) -> torch.Tensor:
        """To the budget, if the last stage has not."""
        return self._shrunk(None)

    def _shrunk(self, share: float | None) -> torch.Tensor:
        learner, kept = self.learner, self.chosen()
        # The last cut may come amid a stage, of which a domain has had few steps or, where domains
        # take turns, none: what it lacks comes from its stage before.
        lacking = (STAGE - learner.steps).clamp(min=0)
        total = learner.square + learner.mean * lacking
        importance = (total / (learner.steps + lacking)).sqrt()
        # Each domain's price is of what all keep, as of the union.
        worth = ranked_worth(self.ranking, importance, self.cost, kept.amax(0))
        return shrink(worth, kept, self.select, share, each=self.each)
