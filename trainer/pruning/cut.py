"""What scores a ranking gives the units, and how scores become the units that are kept."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from prunion.trainer.config import Ranking
from prunion.trainer.cost import Cost
from prunion.trainer.pruning.sharing import marginal_cost

__all__ = ["Select", "cut_each", "cut_together", "cut_union", "ranked_worth"]

LEAST_PRICE = 1e-3  # of the mean price: what costs next to nothing must not seem priceless

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


def cut_together(scores: torch.Tensor, select: Select) -> torch.Tensor:
    """Cut all domains to the same units, those with the largest sum of scores, 0/1 `[D, U]`."""
    kept = torch.from_numpy(select(scores.sum(0).cpu().numpy(), None)).to(scores)
    return kept.expand_as(scores).clone()


def ranked_worth(ranking: Ranking, importance: torch.Tensor, cost: Cost) -> torch.Tensor:
    """What a unit is worth to each domain by `ranking`, not negative: `[D, U]`.

    Args:
        importance: root mean square of ∂L/∂s, `[D, U]`.
        cost: whose derivative at the whole network is what each unit costs.
    """
    if ranking == "random":
        return torch.rand_like(importance)
    if ranking == "importance":
        return importance
    _, price = marginal_cost(cost, torch.ones_like(importance[0], dtype=torch.float64))
    price = price.clamp(min=LEAST_PRICE * float(price.mean()))
    return importance / price.to(importance.dtype)
