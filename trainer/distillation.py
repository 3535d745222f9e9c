"""Distillation: the unpruned network's opinions as soft labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from prunion.runtime.errors import ConfigError
from prunion.trainer.checkpoint import load_checkpoint
from prunion.trainer.network import DomainNet

__all__ = ["Teacher", "load_teacher"]

TEMPERATURE = 2.0


@dataclass(frozen=True)
class Teacher:
    """A finished network of the same domains, and how much its opinion counts.

    Attributes:
        weight: share of the loss, 0 … 1; the labels have the rest.
    """

    net: DomainNet
    weight: float

    def logits(
        self, images: torch.Tensor, segments: Sequence[tuple[int, int]]
    ) -> list[torch.Tensor]:
        """The teacher's logits of every run of one domain, without gradients."""
        with torch.no_grad():
            return [row.float() for row in self.net(images, segments)]

    def loss(self, task: torch.Tensor, logits: torch.Tensor, soft: torch.Tensor) -> torch.Tensor:
        """The labels' loss and the divergence from the teacher (Hinton et al. 2015), a scalar."""
        own = F.log_softmax(logits / TEMPERATURE, dim=1)
        other = F.log_softmax(soft / TEMPERATURE, dim=1)
        apart = F.kl_div(own, other, reduction="batchmean", log_target=True)
        return (1 - self.weight) * task + self.weight * TEMPERATURE**2 * apart


def load_teacher(path: str, weight: float, names: Sequence[str], net: DomainNet) -> Teacher | None:
    """The teacher of a run over domains `names` with the network `net`; None for an empty path.

    Raises CheckpointError for a damaged checkpoint, ConfigError for one of other domains.
    """
    if not path or not weight:
        return None
    checkpoint = load_checkpoint(path)
    theirs = [d["name"] for d in checkpoint.meta["domains"]]
    if theirs != list(names) or checkpoint.net.classes != net.classes:
        raise ConfigError(
            f"[train] teacher {path} knows the domains {', '.join(theirs)}, the run has "
            f"{', '.join(names)}: give a run of the same domains in the same order"
        )
    teacher = checkpoint.net.to(net.switches.device).to(memory_format=torch.channels_last)
    return Teacher(teacher.eval().requires_grad_(False), weight)
