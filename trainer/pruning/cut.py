"""The cut at the end of the ramp: what goes over the budget leaves, and who uses what is kept."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

__all__ = ["Select", "cut_each", "cut_union"]

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
