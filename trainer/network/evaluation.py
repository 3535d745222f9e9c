"""What the masked network answers on test images, and how much of it is right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from prunion.runtime.measure import Answers
from prunion.trainer.config import InputConfig
from prunion.trainer.data import Domain, eval_batches, eval_transform
from prunion.trainer.network.masked import DomainNet
from prunion.trainer.processes import ALONE, Processes

__all__ = ["accuracy_of", "answer_domains", "evaluate", "mean_of_views"]


def evaluate(
    net: DomainNet,
    domains: Sequence[Domain],
    shape: InputConfig,
    switches: torch.Tensor | None = None,
    *,
    gated: bool = True,
    batch_size: int = 64,
    processes: Processes = ALONE,
    workers: int = 0,
) -> dict[str, float]:
    """Share of right answers on each domain's test images.

    Args:
        switches: `[D, U]` to use instead of the network's own.
        gated: False leaves every switch on.
        processes: each measures the domains it owns; all get the answer.
        workers: processes that read images; 0 for a thread.
    """
    own = answer_domains(
        net,
        domains,
        shape,
        switches,
        gated=gated,
        batch_size=batch_size,
        processes=processes,
        workers=workers,
    )
    return accuracy_of(own, domains, processes)


def accuracy_of(
    answers: Mapping[int, Answers], domains: Sequence[Domain], processes: Processes = ALONE
) -> dict[str, float]:
    """Share of right answers of every domain by its name, from each process's own `answers`."""
    shares = {i: int((own.answers == own.labels).sum()) / len(own) for i, own in answers.items()}
    shares = processes.merge(shares, len(domains))
    return {domain.name: shares[index] for index, domain in enumerate(domains)}


def answer_domains(
    net: DomainNet,
    domains: Sequence[Domain],
    shape: InputConfig,
    switches: torch.Tensor | None = None,
    *,
    gated: bool = True,
    batch_size: int = 64,
    processes: Processes = ALONE,
    workers: int = 0,
) -> dict[int, Answers]:
    """Answers for each domain's test images, by its place; arguments as of `evaluate`.

    An answer that is not finite is a wrong one of confidence 0, which no other has.

    A process answers for the domains it owns; where all of them read every domain, each works on
    its share of the images first.
    """
    net.eval()
    device = net.switches.device
    later, found = device.type == "cuda", dict[int, Answers]()
    # Compiled, its short last batches would make every later step's graph one of any shape.
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        for index, domain in enumerate(domains):
            if not processes.reads(index):
                continue
            images_here = np.arange(len(domain.test))[processes.slice_of(0, len(domain.test))]
            test = domain.test.subset(images_here) if processes.slices else domain.test
            crops = shape.crops(domain.mirror)
            transform, parts = eval_transform(shape, crops), []
            batches = eval_batches(test, transform, batch_size, workers, pin=later)
            for images, labels in batches:
                images = images.to(device, non_blocking=later, memory_format=torch.channels_last)
                (logits,) = net(images, [(index, len(images))], switches, gated=gated)
                values = mean_of_views(logits, crops).float().cpu().numpy()
                # While it learns a network may overflow: that is a wrong answer, and no error.
                lost = np.flatnonzero(~np.isfinite(values).all(1))
                values[lost] = 0
                values[lost, labels.numpy()[lost]] = -1
                answered = Answers.of(values, labels.numpy(), logits=crops == 1)
                answered.confidences[lost] = 0
                parts.append(answered)
            if processes.slices:
                parts = [_gathered(parts, images_here, len(domain.test), processes)]
            if processes.owns(index):
                found[index] = Answers.joined(parts)
    return found


def _gathered(
    parts: Sequence[Answers], places: np.ndarray, count: int, processes: Processes
) -> Answers:
    """The answers to all `count` images, from those of each process at its `places`."""
    table = torch.zeros(4, count, dtype=torch.float64)
    if parts:
        own = Answers.joined(parts)
        columns = (own.labels, own.answers, own.confidences, own.ranks)
        table[:, places] = torch.from_numpy(np.stack([x.astype(np.float64) for x in columns]))
    processes.sum([table])
    labels, answers, confidences, ranks = table.numpy()
    whole = np.int64
    return Answers(labels.astype(whole), answers.astype(whole), confidences, ranks.astype(whole))


def mean_of_views(logits: torch.Tensor, crops: int) -> torch.Tensor:
    """Mean class probabilities `[N, C]` over an image's views, from logits `[N · crops, C]`."""
    if crops == 1:
        return logits
    views: torch.Tensor = logits.softmax(1).unflatten(0, (-1, crops))
    return views.mean(1)
