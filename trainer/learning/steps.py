"""One training step: several domains' batches through the shared trunk at once, kept finite."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from prunion.runtime.errors import PrunionError
from prunion.trainer.config import Phase, Precision
from prunion.trainer.data import Batch
from prunion.trainer.learning.distillation import Teacher
from prunion.trainer.learning.loss_scale import mixed
from prunion.trainer.network import DomainNet
from prunion.trainer.processes import ALONE, Processes

__all__ = [
    "StepResult",
    "add_penalty",
    "added",
    "check_losses",
    "check_network",
    "estimate_norms",
    "forward_backward",
    "importance_of",
]

ADVICE = "lower [train] lr or trunk_lr and start again"


@dataclass(frozen=True)
class StepResult:
    """Loss and share of right answers per domain of one step."""

    loss: dict[int, float]
    accuracy: dict[int, float]


def forward_backward(
    net: DomainNet,
    batches: Sequence[Batch],
    switches: torch.Tensor | None,
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
    device = net.switches.device
    later = device.type == "cuda"  # on an Apple GPU a copy must not outlive what it is of
    kind = net.switches.dtype
    images = torch.cat([b.images.to(device, kind, non_blocking=later) for b in batches])
    images = images.contiguous(memory_format=torch.channels_last)
    segments = [(b.domain, len(b.labels)) for b in batches]
    with mixed(device, precision):
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
    share: float = 1.0,
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


def importance_of(
    net: DomainNet,
    steps: Iterable[Sequence[Sequence[Batch]]],
    precision: Precision = "fp32",
    processes: Processes = ALONE,
    *,
    whole: bool = True,
) -> torch.Tensor:
    """Root mean square of ∂L/∂s over batches, `[D, U]`; BatchNorm's statistics stay as they are.

    Args:
        steps: each in the parts that are computed one after the other; their gradients add up.
        whole: with every switch on, or else as the network has them.
        precision: `fp16` measures in float32: there is no knowing yet which scale would do.
    """
    frozen = {k: v.clone() for k, v in net.trunk.named_buffers()}
    precision = "fp32" if precision == "fp16" else precision
    total = torch.zeros_like(net.switches)
    count = total.new_zeros(len(total), 1)
    for parts in steps:
        on = torch.ones_like(net.switches) if whole else net.switches.clone()
        on.requires_grad_()
        for batches in parts:
            forward_backward(net, batches, on, precision=precision)
        assert on.grad is not None
        if processes.slices:  # the square is of the whole batch's gradient
            processes.sum([on.grad])
        total += on.grad.square()
        for domain in {batch.domain for batches in parts for batch in batches}:
            count[domain] += 1
    net.zero_grad(set_to_none=True)
    for name, buffer in net.trunk.named_buffers():
        buffer.copy_(frozen[name])
    if not processes.slices:
        processes.sum([total, count])
    return (total / count.clamp(min=1)).sqrt()


def estimate_norms(
    net: DomainNet, steps: Iterable[Sequence[Batch]], precision: Precision = "fp32"
) -> None:
    """BatchNorm's statistics anew: the mean over batches, with the switches as they are.

    A domain's own are stale once others have moved its switches while it was absent.
    """
    device, norms = net.switches.device, net.norms.values()
    later = device.type == "cuda"
    momenta = [norm.momentum for norm in norms]
    training = net.training
    net.train()
    # As in evaluation: without gradients a compiled trunk would be compiled once more.
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        for number, batches in enumerate(steps):
            for norm in norms:
                norm.momentum = 1 / (number + 1)  # of so many batches that is their plain mean
            kind = net.switches.dtype
            images = torch.cat([b.images.to(device, kind, non_blocking=later) for b in batches])
            images = images.contiguous(memory_format=torch.channels_last)
            with mixed(device, precision):
                net.features(images, [(b.domain, len(b.labels)) for b in batches])
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    net.train(training)


def check_losses(losses: Mapping[int, float], names: Sequence[str], where: str, saved: str) -> None:
    """Raise PrunionError if the loss of a domain, by number, is NaN or infinite.

    Args:
        where: the step, for the message.
        saved: the last good state, or that there is none.
    """
    for domain, loss in losses.items():
        if not math.isfinite(loss):
            raise PrunionError(
                f"{where}: the loss of domain {names[domain]} became {loss}: {ADVICE}; {saved}"
            )


def check_network(net: DomainNet, where: str, saved: str) -> None:
    """Raise PrunionError if a parameter or a statistic is NaN or infinite.

    The losses of a step come before its update, so no loss has seen a state's last update.
    """
    values = {k: v for k, v in net.state_dict().items() if v.is_floating_point()}
    finite = torch.stack([torch.isfinite(value).all() for value in values.values()])
    for name, good in zip(values, finite.tolist(), strict=True):  # one wait for a GPU, not one each
        if not good:
            raise PrunionError(f"{where}: {name} is no longer finite: {ADVICE}; {saved}")
