"""What a resumed run needs to know of a switch learner, whichever it is."""

from __future__ import annotations

from typing import Protocol

import torch

__all__ = ["Learner", "learner_state", "restore_learner"]

TENSORS = ("scores", "mean", "square", "steps")


class Learner(Protocol):
    """Adam's state over scores `[D, U]`, its steps, and how many switches came back on."""

    scores: torch.Tensor
    mean: torch.Tensor
    square: torch.Tensor
    steps: torch.Tensor
    returned: int


def learner_state(learner: Learner) -> dict[str, torch.Tensor]:
    """The state as tensors."""
    returned = torch.tensor(learner.returned)
    return {**{name: getattr(learner, name) for name in TENSORS}, "returned": returned}


def restore_learner(learner: Learner, state: dict[str, torch.Tensor]) -> None:
    """Continue from `learner_state`, on the learner's device."""
    for name in TENSORS:
        setattr(learner, name, state[name].to(learner.scores.device, copy=True))
    learner.returned = int(state["returned"])
