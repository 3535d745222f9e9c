"""What scores a ranking gives the units, and how scores become the units that are kept."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from prunion.trainer.config import Ranking
from prunion.trainer.cost import Cost
from prunion.trainer.pruning.sharing import marginal_cost

__all__ = ["Select", "cut_each", "cut_together", "cut_union", "ranked_worth", "shrink"]

LEAST_PRICE = 1e-3  # of the mean price: what costs next to nothing must not seem priceless


class Select(Protocol):
    """What the budget keeps of the units."""

    def __call__(
        self, worth: np.ndarray, used: np.ndarray | None, share: float | None = None
    ) -> np.ndarray:
        """The best units that the budget allows, `[U]` bool.

        Args:
            worth: of each unit, `[U]`.
            used: which may be kept, `[U]` bool; None: all.
            share: of the backbone's cost that is allowed, instead of the budget's where it is more.
        """


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


def shrink(
    worth: torch.Tensor, used: torch.Tensor, select: Select, share: float | None, *, each: bool
) -> torch.Tensor:
    """Keep what is worth most of the units in use, 0/1 `[D, U]`.

    Args:
        worth: not negative, `[D, U]`.
        used: 0/1 `[D, U]`; the same for all domains unless `each`.
        share: as `Select` takes it.
        each: every domain as if it were the only one; otherwise all keep the same.
    """
    rows = worth * used if each else (worth * used).sum(0, keepdim=True)
    allowed = (used if each else used[:1]) > 0
    kept = [
        torch.from_numpy(select(row, may, share))
        for row, may in zip(rows.cpu().numpy(), allowed.cpu().numpy(), strict=True)
    ]
    return torch.stack(kept).to(worth).expand_as(worth).clone()


def ranked_worth(
    ranking: Ranking, importance: torch.Tensor, cost: Cost, kept: torch.Tensor | None = None
) -> torch.Tensor:
    """What a unit is worth to each domain by `ranking`, not negative: `[D, U]`.

    `fisher-per-cost` follows Theis, Korshunova, Tejani and Huszár 2018, "Faster gaze prediction
    with dense networks and Fisher pruning", arXiv:1801.05787.

    Args:
        importance: root mean square of ∂L/∂s, `[D, U]`.
        cost: whose derivative at the network that has `kept` `[U]` is what each unit costs.
        kept: 0/1 `[U]`; without it the whole network.
    """
    if ranking == "random":
        return torch.rand_like(importance)
    if ranking == "importance":
        return importance
    kept = torch.ones_like(importance[0]) if kept is None else kept
    _, price = marginal_cost(cost, kept.double())
    price = price.clamp(min=LEAST_PRICE * float(price.mean()))
    # Half its square is the loss to expect without the unit (Fisher information for curvature).
    lost = importance.square() if ranking == "fisher-per-cost" else importance
    return lost / price.to(importance.dtype)
