"""The paper's own way to learn switches: Adam on scores that start just above the threshold."""

from __future__ import annotations

import torch

__all__ = ["PaperLearner"]

START = 1e-3
LEARNING_RATE = 1e-4
FAST, SLOW, TINY = 0.9, 0.999, 1e-8  # Adam's own defaults


class PaperLearner:
    """Scores `[D, U]`, on above 0; every gradient, λ's included, goes through Adam.

    Adam moves a score by its learning rate whatever the gradient's size, so ten steps in one
    direction turn a switch off. Kept beside `SwitchLearner` to compare with.
    """

    def __init__(self, domains: int, units: int, device: torch.device | None = None) -> None:
        self.scores = torch.full((domains, units), START, device=device)
        self.mean = torch.zeros_like(self.scores)
        self.square = torch.zeros_like(self.scores)
        self.rate = 1.0
        self.steps = torch.zeros((), dtype=torch.int64, device=device)
        self.returned = 0

    def on(self) -> torch.Tensor:
        """0/1 switches `[D, U]`, a leaf that collects the straight-through gradient."""
        return (self.scores > 0).float().requires_grad_()

    def update(self, gradient: torch.Tensor, charge: torch.Tensor) -> None:
        """One step of Adam, of every domain, whosever images the step had, as in the paper.

        Args:
            gradient: of the task loss with respect to the 0/1 switches, `[D, U]`.
            charge: of the budget and sharing losses, likewise.
        """
        self.steps += 1
        total = gradient + charge
        self.mean.lerp_(total, 1 - FAST)
        self.square.mul_(SLOW).addcmul_(total, total, value=1 - SLOW)
        mean = self.mean / (1 - FAST ** int(self.steps))
        size = (self.square / (1 - SLOW ** int(self.steps))).sqrt() + TINY
        before = self.scores > 0
        self.scores = self.scores - self.rate * LEARNING_RATE * mean / size
        self.returned += int(((self.scores > 0) & ~before).sum())
