"""Heads that start as the best linear classifiers of the backbone's own features.

Kumar, Raghunathan, Jones, Ma and Liang 2022, "Fine-Tuning can Distort Pretrained Features and
Underperform Out-of-Distribution", arXiv:2202.10054: under a random head the first steps of
fine-tuning spoil the features that it is to read, so the head is learned first. Here that takes no
steps: ridge regression has a closed form, and so have its errors on images left out one by one
(Allen 1974, the PRESS statistic), which choose how strongly it is held back.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from torch import nn
from torch.nn import functional as F

from prunion.trainer.config import Precision
from prunion.trainer.data import JointBatches
from prunion.trainer.learning.step import autocast_of
from prunion.trainer.network import DomainNet
from prunion.trainer.processes import ALONE, Processes

__all__ = ["fit_heads", "images_to_fit", "ridge"]

log = logging.getLogger(__name__)

WIDEST = 4096  # features; the time grows with their cube
PER_CLASS, PER_FEATURE = 64, 4  # images that are enough, whichever is more
RIDGES = tuple(10.0 ** (n / 2) for n in range(-8, 5))  # of the features' mean variance
SCALES = tuple(10.0 ** (n / 10) for n in range(26))  # of logits: up to 316
AS_GOOD = 0.01  # of cross-entropy: a head that is never wrong would be as sure as it may
# Of that scale. At all of it training images are answered right and surely from the start, which
# leaves a tuned trunk little to learn: on images held out it ends worse than from random heads.
SOFTENED = 0.3
ROWS = 4096  # at once


def images_to_fit(net: DomainNet, batches: JointBatches) -> list[int]:
    """Training images of each domain that its head is fitted to; 0 where heads are too wide."""
    width = next(head.in_features for head in net.heads if isinstance(head, nn.Linear))
    return [
        min(count, max(PER_CLASS * classes, PER_FEATURE * width)) if width <= WIDEST else 0
        for count, classes in zip(batches.images, net.classes, strict=True)
    ]


@torch.no_grad()
def fit_heads(
    net: DomainNet, batches: JointBatches, precision: Precision = "fp32"
) -> list[float | None]:
    """Fit every head to its domain's training images and to the network as it is now.

    Features are those of training, normalised by the batch; statistics stay as they are. A head of
    more than 4,096 features stays random, and so does one whose features are not finite.

    Args:
        batches: the first epoch's are read, until every domain has enough of them.

    Returns:
        Each domain's share of right answers, of images left out one by one; None where its head
        stays random.
    """
    processes = batches.processes
    heads = [head for head in net.heads if isinstance(head, nn.Linear)]
    width = heads[0].in_features
    if width > WIDEST:
        log.info("heads of %s features start at random: fitting them would take long", width)
        return [None] * len(net.heads)
    enough = images_to_fit(net, batches)
    log.info("fitting heads to the backbone's features of %s images", f"{sum(enough):,}")
    parts: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in enough]
    for domain, features, labels in _features(net, batches, enough, precision):
        parts[domain].append((features, labels))
    none = torch.zeros(0, width), torch.zeros(0, dtype=torch.int64)
    right: list[float | None] = []
    for head, part in zip(heads, parts, strict=True):
        features, labels = (torch.cat(each) for each in zip(none, *part, strict=True))
        weight, bias, share = ridge(features.double(), labels, head.out_features, processes)
        finite = bool(torch.isfinite(weight).all())
        right.append(share if finite else None)
        if finite:
            head.weight.copy_(weight)
            head.bias.copy_(bias)
            # The same sums, but on another kind of machine not to the last bit.
            processes.copy_from_first([head.weight, head.bias])
    return right


def ridge(
    features: torch.Tensor, labels: torch.Tensor, classes: int, processes: Processes = ALONE
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Weight `[C, F]` and bias `[C]` of the best linear classifier, and its share of right answers.

    Least squares on one-hot labels, held back by the ridge whose leave-one-out errors are least,
    and scaled to three tenths of what gives those answers, as logits, the least cross-entropy. All
    of it is NaN where a feature is not finite, or there is no image.

    Args:
        features: `[N, F]` float64, this process's part of all.
        labels: `[N]` of `classes`.
    """
    count = torch.tensor([len(labels)], dtype=torch.float64)
    counts = torch.bincount(labels, minlength=classes).double()
    total = features.sum(0)
    processes.sum([count, counts, total])
    shares, mean = counts / count, total / count
    centred = features - mean
    products = centred.T @ centred
    towards = torch.zeros(features.shape[1], classes, dtype=torch.float64)
    towards.index_add_(1, labels, centred.T)
    processes.sum([products, towards])
    if not bool(count) or not bool(torch.isfinite(products).all()):
        return products.new_full((classes, len(mean)), math.nan), shares, math.nan
    strength, axes = torch.linalg.eigh(products)
    ridges = torch.tensor(RIDGES, dtype=torch.float64) * strength.mean().clamp(min=1e-12)
    rotated, aims = centred @ axes, axes.T @ towards

    def left_out(ridge: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Answers `[n, C]` for images that the fit has not seen, and their labels, part by part."""
        factors = 1 / (strength.clamp(min=0) + ridge)
        for rows, own in zip(rotated.split(ROWS), labels.split(ROWS), strict=True):
            fitted = shares + rows @ (factors[:, None] * aims)
            lever = (rows.square() @ factors + 1 / count).clamp(max=1 - 1e-6)
            aim = F.one_hot(own, classes).double()
            yield aim - (aim - fitted) / (1 - lever)[:, None], own

    errors = torch.zeros(len(ridges), dtype=torch.float64)
    for number, ridge in enumerate(ridges):
        for answers, own in left_out(ridge):
            errors[number] += (F.one_hot(own, classes) - answers).square().sum()
    processes.sum([errors])
    best = ridges[errors.argmin()]
    losses, right = torch.zeros(len(SCALES), dtype=torch.float64), torch.zeros_like(count)
    for answers, own in left_out(best):
        right += (answers.argmax(1) == own).sum()
        for number, scale in enumerate(SCALES):
            losses[number] += F.cross_entropy(scale * answers, own, reduction="sum")
    processes.sum([losses, right])
    scale = SOFTENED * SCALES[int((losses <= losses.min() + AS_GOOD * count).double().argmax())]
    weight = axes @ (aims / (strength.clamp(min=0) + best)[:, None])
    return scale * weight.T, scale * (shares - mean @ weight), float(right / count)


def _features(
    net: DomainNet, batches: JointBatches, enough: Sequence[int], precision: Precision
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Domains, features `[n, F]` float32 and labels `[n]`: this process's part, no image twice."""
    device, kind, sizes = net.switches.device, net.switches.dtype, batches.sizes
    most = max(math.ceil(n / size) for n, size in zip(enough, sizes, strict=True))
    whole, training = bool(net.switches.all()), net.training
    net.train()
    frozen = {name: buffer.clone() for name, buffer in net.trunk.named_buffers()}
    # As in evaluation: without gradients a compiled trunk would be compiled once more.
    with torch.compiler.set_stance("force_eager"):
        for step, parts in enumerate(islice(batches.epoch(0, joint=True), most)):
            images = torch.cat([part.images.to(device, kind) for part in parts])
            images = images.contiguous(memory_format=torch.channels_last)
            segments = [(part.domain, len(part.labels)) for part in parts]
            with autocast_of(device, precision):
                features, _ = net.features(images, segments, gated=not whole)
            pieces = features.float().cpu().split([count for _, count in segments])
            for part, piece in zip(parts, pieces, strict=True):
                domain, size = part.domain, sizes[part.domain]
                mine = batches.processes.slice_of(sum(sizes[:domain]), size)
                new = torch.arange(step * size, (step + 1) * size)[mine] < enough[domain]
                other = part.others is not None and part.kept < 0.5
                labels = part.others if other else part.labels
                assert labels is not None
                yield domain, piece[new], labels[new]
    for name, buffer in net.trunk.named_buffers():
        buffer.copy_(frozen[name])
    net.train(training)
