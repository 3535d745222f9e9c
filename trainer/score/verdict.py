"""What pruning cost a run, how sure that is, and what to try next: a plain verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from prunion.trainer.score.advice import CLEAR, UNLEARNED, Fit, Limit, Lost, limit_line
from prunion.trainer.score.learned import Learned, comparable, read_learned
from prunion.trainer.score.losses import Loss, domain_losses, lost_line, mean_loss, normal_of
from prunion.trainer.score.pruning import read_pruning

__all__ = ["Limit", "Loss", "Verdict", "judge", "read_verdict"]

GAP = 0.05  # between training and test images, from which on more images are what is lacking


@dataclass(frozen=True)
class Verdict:
    """The verdict on a run.

    Attributes:
        loss: of the mean over domains; None without a baseline on the same images.
        domains: the same for each domain, with intervals that hold for all of them together.
        images: test images of all domains.
        limit: what stands in the way of more accuracy.
        lines: all of it in words.
    """

    loss: Loss | None
    domains: dict[str, Loss]
    images: int
    limit: Limit
    lines: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def judge(pruned: Learned, baseline: Learned | None = None) -> Verdict:
    """Judge a pruned run, against the same run with every channel where there is one.

    Of a run that leaves nothing out (`Pruning.prunes`) it says what it learned alone.
    """
    names = list(pruned.accuracy)
    prunes = pruned.pruning is None or pruned.pruning.prunes
    answers = {
        name: (baseline.right[name], pruned.right[name])
        for name in names
        if baseline is not None and prunes and comparable(baseline, pruned, name)
    }
    domains = domain_losses(answers)
    loss = mean_loss(answers) if len(answers) == len(names) else None
    images = sum(len(pruned.right[name]) for name in names if name in pruned.right)
    lost = [name for name, x in domains.items() if x.low > 0]
    # Of a baseline that may not be compared, what it learned says as little as what it answers.
    rival = None
    if baseline is not None and answers:
        trained = {name: x for name, x in baseline.trained.items() if name in answers}
        rival = replace(baseline, trained=trained)
    fit = _fit(pruned, rival, prunes)
    limit: Limit = "unknown" if fit is None else _limit(fit, pruned, rival, loss, lost)
    if limit == "budget" and fit is not None and rival is not None:
        fit = _fit_of(fit, pruned, rival, lost)
    lines = []
    if prunes:
        unknown = [name for name in names if name not in domains and baseline is not None]
        lines.append(lost_line(loss, domains, images, unknown))
    lines.append(limit_line(limit, fit, pruned.pruning, pruned.limit, _lost(loss, lost, prunes)))
    if pruned.pruning is not None:
        lines.append(pruned.pruning.cut_line(pruned.limit, pruned.uncut))
    return Verdict(loss, domains, images, limit, tuple(line for line in lines if line))


def read_verdict(folder: Path, baseline: Path | None = None) -> Verdict | None:
    """The verdict on a finished run's folder; None where its record is not there or too old.

    Args:
        baseline: the folder of the same run with every channel.
    """
    pruned = read_learned(folder)
    if pruned is None:
        return None
    pruned = replace(pruned, pruning=read_pruning(folder))
    return judge(pruned, None if baseline is None else read_learned(baseline))


# --- figures --------------------------------------------------------------------------------------


def _is_lost(loss: Loss | None, lost: Sequence[str]) -> bool:
    """Whether the mean surely lost, or any domain: few images of one hide the others' in a mean."""
    return bool(lost) or (loss is not None and loss.low > 0)


def _lost(loss: Loss | None, lost: Sequence[str], prunes: bool) -> Lost:
    """That fewer channels may do is advised where more than a point is surely not lost already."""
    if _is_lost(loss, lost):
        return "surely"
    return "little" if prunes and loss is not None and loss.high <= CLEAR else "unknown"


def _average(values: Mapping[str, float]) -> float | None:
    return float(np.mean(list(values.values()))) if values else None


def _fit(learned: Learned, baseline: Learned | None, prunes: bool) -> Fit | None:
    trained = _average(learned.trained)
    # Of what is trained: one epoch may lack domains.
    tested = _average({n: x for n, x in learned.accuracy.items() if n in learned.trained})
    if trained is None or tested is None:
        return None
    whole = None
    if baseline is not None and prunes and learned.trained.keys() <= baseline.trained.keys():
        whole = _average({name: baseline.trained[name] for name in learned.trained})
    told, of = not prunes or whole is not None, ""
    if len(learned.trained) < len(learned.accuracy):
        of = _called(list(learned.trained), f"{len(learned.trained)} domains")
    seen = None if (gap := _unfitted(learned)) is None else trained - gap
    return Fit(trained, tested, whole, _lacks_images(learned), told, seen, of)


def _called(names: Sequence[str], several: str) -> str:
    return names[0] if len(names) == 1 else several


def _variance(share: float, images: int) -> float:
    """Of a share of so many images; two of each kind added, or all of three would be certain."""
    share = (share * images + 2) / (images + 4)
    return share * (1 - share) / images


def _learns_less(pruned: Learned, baseline: Learned, lost: Sequence[str]) -> bool:
    """Whether the pruned network fits the training images less well, beyond chance.

    Those of the domains that surely lost, or of all where the mean alone did.
    """
    names = [n for n in _trained_by_both(pruned, baseline, lost) if pruned.images.get(n)]
    if not names:
        return False
    less = float(np.mean([baseline.trained[n] - pruned.trained[n] for n in names]))
    noise = [_variance(p.trained[n], p.images[n]) for n in names for p in (pruned, baseline)]
    return less > max(CLEAR, normal_of() * math.sqrt(sum(noise)) / len(names))


def _trained_by_both(pruned: Learned, baseline: Learned, lost: Sequence[str]) -> list[str]:
    """The domains that lost, or all where none did, that both runs tell how well they learned."""
    names = [n for n in pruned.trained if n in baseline.trained]
    return [n for n in names if n in lost] or names


def _fit_of(fit: Fit, pruned: Learned, baseline: Learned, lost: Sequence[str]) -> Fit:
    """The same of the domains that lost: in a mean, others that gained would hide it."""
    names = _trained_by_both(pruned, baseline, lost)
    if not names or names == list(pruned.trained):
        return fit
    trained, whole = ([x.trained[n] for n in names] for x in (pruned, baseline))
    of = _called(names, f"the {len(names)} domains that lost")
    return replace(fit, trained=float(np.mean(trained)), whole=float(np.mean(whole)), of=of)


def _unfitted(learned: Learned) -> float | None:
    """By how much fewer training images the finished network answers than its last steps did.

    None where that is not known, or may be chance. Steps go by the statistics of their own batch,
    which what is exported has not.
    """
    names = [n for n in learned.trained if learned.images.get(n) and n in learned.seen]
    if not names or len(names) < len(learned.trained):
        return None
    pairs = [((learned.trained[n], learned.images[n]), learned.seen[n][::-1]) for n in names]
    noise = [_variance(share, count) for pair in pairs for share, count in pair]
    gap = float(np.mean([steps[0] - own[0] for steps, own in pairs]))
    return gap if gap > GAP + normal_of() * math.sqrt(sum(noise)) / len(names) else None


def _lacks_images(learned: Learned) -> bool:
    """Whether training images are answered better than test images, by more than chance."""
    names = [n for n in learned.trained if n in learned.accuracy]
    shares = [(learned.trained[n], learned.accuracy[n]) for n in names]
    counts = [(learned.images.get(n, 0), len(learned.right.get(n, ()))) for n in names]
    if not names or not all(map(all, counts)):  # of how many images is not known
        return False
    noise = [
        _variance(share, count)
        for pair, images in zip(shares, counts, strict=True)
        for share, count in zip(pair, images, strict=True)
    ]
    gap = float(np.mean([trained - tested for trained, tested in shares]))
    return gap > GAP + normal_of() * math.sqrt(sum(noise)) / len(names)


def _limit(
    fit: Fit,
    pruned: Learned,
    baseline: Learned | None,
    loss: Loss | None,
    lost: Sequence[str],
) -> Limit:
    if fit.seen_by is not None:
        return "norms"
    is_lost, prunes = _is_lost(loss, lost), pruned.pruning is None or pruned.pruning.prunes
    if is_lost and baseline is not None and _learns_less(pruned, baseline, lost):
        return "budget"
    best = max(fit.trained, fit.whole or 0.0)
    unlearned = best < UNLEARNED and 1 - best > fit.trained - fit.tested  # more is lost there
    if fit.overfits and not unlearned:
        return "data"
    if is_lost:
        return "budget"
    if prunes and loss is None:
        return "unknown"
    return "epochs" if fit.is_low else "none"
