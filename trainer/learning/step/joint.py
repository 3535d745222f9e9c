"""One training step: several domains' batches through the shared trunk at once, kept finite."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from prunion.runtime.errors import PrunionError
from prunion.trainer.config import Phase, Precision, TrainConfig
from prunion.trainer.data import Batch
from prunion.trainer.learning.step.distillation import Teacher
from prunion.trainer.learning.step.loss_scale import autocast_of
from prunion.trainer.network import DomainNet

__all__ = [
    "StepResult",
    "add_penalty",
    "added",
    "check_losses",
    "check_network",
    "forward_backward",
    "images_of",
    "lower_rates",
    "segments_of",
]


@dataclass(frozen=True)
class StepResult:
    """Loss and share of right answers per domain of one step."""

    loss: dict[int, float]
    accuracy: dict[int, float]


def forward_backward(
    net: DomainNet,
    batches: Sequence[Batch],
    switches: torch.Tensor | None,
    *,
    smoothing: float = 0.0,
    precision: Precision = "fp32",
    teacher: Teacher | None = None,
    through: nn.Module | None = None,
    scale: float = 1.0,
) -> StepResult:
    """Add up the domains' cross-entropies and back-propagate their sum.

    A batch that is a slice adds its share of the mean over the whole: so figures and gradients of
    all processes add up to those of the step.

    Args:
        switches: `[D, U]` to use (its `.grad` is filled if it asks for one); None leaves all on.
        precision: `bf16` and `fp16` run the network in mixed precision; the loss stays float32.
        teacher: whose logits are part of the loss; the losses given back are with it.
        through: what wraps `net` and is called in its place.
        scale: of the gradients, so that small ones are not zero in half precision.
    """
    device, kind = net.switches.device, net.switches.dtype
    later = _copies_later(device)
    images, segments = images_of(batches, net), segments_of(batches)
    with autocast_of(device, precision):
        soft = teacher.logits(images, segments) if teacher else [None] * len(segments)
        outputs = (through or net)(images, segments, switches, gated=switches is not None)
    losses = {}
    correct = {}
    for batch, logits, other in zip(batches, outputs, soft, strict=True):
        labels = batch.labels.to(device, non_blocking=later)
        logits = logits.to(kind)
        if not len(labels):  # of this domain others have images; its parameters still take part
            losses[batch.domain], correct[batch.domain] = logits.sum(), logits.detach().sum()
            continue
        loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        if batch.others is not None:
            others = batch.others.to(device, non_blocking=later)
            theirs = F.cross_entropy(logits, others, label_smoothing=smoothing)
            loss = batch.kept * loss + (1 - batch.kept) * theirs
        if teacher is not None and other is not None:
            loss = teacher.loss(loss, logits, other)
        right = (logits.detach().argmax(1) == labels).to(kind).mean()
        losses[batch.domain], correct[batch.domain] = loss * batch.share, right * batch.share
    (scale * torch.stack(list(losses.values())).sum()).backward()
    # One wait for the device, not one a figure.
    figures = torch.stack([*losses.values(), *correct.values()]).tolist()
    return StepResult(
        dict(zip(losses, figures[: len(losses)], strict=True)),
        dict(zip(correct, figures[len(losses) :], strict=True)),
    )


def images_of(batches: Sequence[Batch], net: DomainNet) -> torch.Tensor:
    """The images of all batches `[N, 3, H, W]`, on the network's device and as it reads them."""
    device, kind = net.switches.device, net.switches.dtype
    later = _copies_later(device)
    images = torch.cat([b.images.to(device, kind, non_blocking=later) for b in batches])
    return images.contiguous(memory_format=torch.channels_last)


def segments_of(batches: Sequence[Batch]) -> list[tuple[int, int]]:
    """Which domain has how many of these images."""
    return [(batch.domain, len(batch.labels)) for batch in batches]


def _copies_later(device: torch.device) -> bool:
    """Whether a copy need not be waited for: on an Apple GPU it must not outlive what it is of."""
    return device.type == "cuda"


def added(results: Sequence[StepResult]) -> StepResult:
    """The figures of a step from those of its parts."""
    loss: dict[int, float] = {}
    accuracy: dict[int, float] = {}
    for result in results:
        for total, part in ((loss, result.loss), (accuracy, result.accuracy)):
            for domain, value in part.items():
                total[domain] = total.get(domain, 0.0) + value
    return StepResult(loss, accuracy)


def add_penalty(
    net: DomainNet,
    batches: Sequence[Batch],
    images: Sequence[int],
    phase: Phase,
    optimiser: torch.optim.Optimizer,
    *,
    share: float,
) -> None:
    """Add `share` of the gradient of what a run's method charges for, beside the task.

    Args:
        images: training images of every domain.
    """
    if net.adapter is None:
        return
    penalty = net.adapter.penalty([batch.domain for batch in batches], images, phase)
    if penalty is None:
        return
    own = [p for group in optimiser.param_groups for p in group["params"] if p.requires_grad]
    # Not by `backward`, which would begin another exchange between processes.
    found = torch.autograd.grad(penalty, own, allow_unused=True)
    for parameter, gradient in zip(own, found, strict=True):
        if gradient is not None and parameter.grad is not None:
            parameter.grad += share * gradient


def check_losses(
    losses: Mapping[int, float],
    names: Sequence[str],
    train: TrainConfig,
    where: str,
    saved: str,
    *,
    origin: str = "",
) -> None:
    """Raise PrunionError if the loss of a domain, by number, is NaN or infinite.

    Args:
        train: whose rates moved the network, for the message.
        where: the step, for the message.
        saved: the last good state, or that there is none.
        origin: as of `lower_rates`.
    """
    for domain, loss in losses.items():
        if not math.isfinite(loss):
            raise PrunionError(
                f"{where}: the loss of domain {names[domain]} became {loss}: "
                f"{lower_rates(train, origin=origin)}; {saved}"
            )


def check_network(
    net: DomainNet, train: TrainConfig, where: str, saved: str, *, origin: str = ""
) -> None:
    """Raise PrunionError if a parameter or a statistic is NaN or infinite.

    The losses of a step come before its update, so no loss has seen a state's last update.
    """
    values = {k: v for k, v in net.state_dict().items() if v.is_floating_point()}
    finite = torch.stack([torch.isfinite(value).all() for value in values.values()])
    for name, good in zip(values, finite.tolist(), strict=True):  # one wait for a GPU, not one each
        if not good:
            raise PrunionError(
                f"{where}: {name} is no longer finite: {lower_rates(train, origin=origin)}; {saved}"
            )


def lower_rates(train: TrainConfig, *, origin: str = "") -> str:
    """What to do about rates that were too high: those that moved anything.

    Args:
        origin: of the finished run that a domain joins, whose adapters have that run's rate.
    """
    head = train.head_lr != "auto" or train.head_optimiser == "sgd"
    rates = {
        "lr": not (train.freezes_norms and head),
        "head_lr": head,
        "trunk_lr": train.trunk == "tuned",
        "adapter_lr": bool(train.traits.adapter_lr) and not origin,
        "switch_lr": train.traits.masks,
    }
    *others, last = (key for key, moves in rates.items() if moves)
    return f"lower [train] {', '.join(others)}{' or ' if others else ''}{last} and start again"
