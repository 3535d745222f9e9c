"""Distillation: the unpruned network's answers as soft labels.

Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network", arXiv:1503.02531.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from prunion.runtime.errors import ConfigError
from prunion.trainer.config import RunConfig
from prunion.trainer.network import DomainNet, load_checkpoint
from prunion.trainer.processes import channels_last

__all__ = ["Teacher", "load_teacher"]

TEMPERATURE = 2.0  # of the softmax, Hinton's T


@dataclass(frozen=True)
class Teacher:
    """A finished network of the same domains, and how much its answers count.

    Attributes:
        weight: share of the loss, 0 … 1; the labels have the rest.
        digest: of its weights, hex.
        config: what it was trained by, where it is a finished run's.
    """

    net: DomainNet
    weight: float
    digest: str = ""
    config: RunConfig | None = None

    def logits(
        self, images: torch.Tensor, segments: Sequence[tuple[int, int]]
    ) -> list[torch.Tensor]:
        """The teacher's logits of every run of one domain, without gradients."""
        with torch.no_grad():
            return [row.float() for row in self.net(images, segments)]

    def loss(self, task: torch.Tensor, logits: torch.Tensor, soft: torch.Tensor) -> torch.Tensor:
        """The loss against the labels, mixed with the divergence from the teacher, a scalar.

        Args:
            task: the loss against the labels, a scalar.
            logits: the network's own, `[N, C]`.
            soft: the teacher's, `[N, C]`.
        """
        own = F.log_softmax(logits / TEMPERATURE, dim=1)
        other = F.log_softmax(soft / TEMPERATURE, dim=1)
        apart = F.kl_div(own, other, reduction="batchmean", log_target=True)
        # Softened by T, gradients are T² times smaller: without it `weight` would mean little.
        return (1 - self.weight) * task + self.weight * TEMPERATURE**2 * apart


def load_teacher(
    run: RunConfig, classes: Mapping[str, Sequence[str]], device: torch.device
) -> Teacher | None:
    """The teacher that `[train]` names, or None.

    It must have seen images as the run does.

    Args:
        classes: of every domain of the run by its name, in order.

    Raises CheckpointError for a damaged checkpoint, ConfigError for one of other domains, classes
    or images.
    """
    path, weight = run.train.teacher, run.train.distillation
    if not path or not weight:
        return None
    checkpoint = load_checkpoint(path)
    theirs = {d["name"]: d["classes"] for d in checkpoint.meta["domains"]}
    if list(theirs) != list(classes):
        raise ConfigError(
            f"[train] teacher {path} knows the domains {', '.join(theirs)}, the run has "
            f"{', '.join(classes)}: give a run of the same domains in the same order"
        )
    for name in classes:
        if list(theirs[name]) != list(classes[name]):
            raise ConfigError(
                f"[train] teacher {path} knows other classes of {name}, or in another order: "
                "give a run of the same data sets"
            )
    for key in ("size", "mean", "std", "orientation"):
        seen, asked = (getattr(config.input, key) for config in (checkpoint.config, run))
        if seen != asked:
            raise ConfigError(
                f"[train] teacher {path} was trained with [input] {key} = {seen}, and this run has "
                f"{asked}: give a teacher that sees the same images"
            )
    teacher = checkpoint.net.to(device)
    channels_last(teacher)
    digest = str(checkpoint.meta["model_sha256"])
    return Teacher(teacher.eval().requires_grad_(False), weight, digest, checkpoint.config)
