"""Whether a run's teacher has learned from images that the run itself holds out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from prunion.runtime.images import same_images
from prunion.trainer.config import CHECKPOINT, RunConfig
from prunion.trainer.data import Domain, ImageSet
from prunion.trainer.learning import Training
from prunion.trainer.score import MadeBy, read_made_by

__all__ = ["tell_taught"]

log = logging.getLogger(__name__)


def tell_taught(training: Training, domains: Sequence[Domain]) -> None:
    """Warn of domains whose held-out images were among those that the run's teacher learned from.

    Which are held out follows from the seed, the share, and the images that there are.
    """
    run, teacher = training.config, training.teacher
    if teacher is None or teacher.config is None or not training.processes.first:
        return
    tested, validated = _seen(run, domains, teacher.config, _made_by(Path(run.train.teacher)))
    told = [f"tests {', '.join(tested)} with"] if tested else []
    told += [f"validates {', '.join(validated)} with"] if validated else []
    if told:
        log.warning(
            "[train] teacher %s had another seed, another holdout or other images: it has learned "
            "from images that this run %s, whose accuracy will be too high; give a teacher of the "
            "same seed, holdout and images, or test and validation images in place of a holdout",
            run.train.teacher,
            " and ".join(told),
        )


def _seen(
    run: RunConfig, domains: Sequence[Domain], taught: RunConfig, made_by: MadeBy
) -> tuple[list[str], list[str]]:
    """Names of the domains whose teacher saw some of the test, and of the validation images."""
    tested, validated = [], []
    for own, other, domain in zip(run.domains, taught.domains, domains, strict=True):
        digests = made_by.get("domains", {}).get(own.name, {}).get("digests", {})
        alike, shares = run.seed == taught.seed, (own.holdout, other.holdout)
        if own.holdout and not (alike and _left_out(shares, domain.test, digests.get("test"))):
            tested.append(own.name)
        alike = alike and own.holdout == other.holdout  # it is drawn from what that one leaves
        shares = own.validation_holdout, other.validation_holdout
        digest = digests.get("validation")
        if shares[0] and not (alike and _left_out(shares, domain.validation, digest)):
            validated.append(own.name)
    return tested, validated


def _left_out(shares: tuple[float, float], images: ImageSet | None, digest: str | None) -> bool:
    """Whether images that a run holds out were held out of its teacher too, as far as is known.

    Args:
        shares: what the run and what its teacher held out, by the same draw.
        digest: of what the teacher did.
    """
    mine, theirs = shares
    if mine != theirs or images is None:
        return theirs > mine
    return same_images(images.digest, digest or "") is not False


def _made_by(teacher: Path) -> MadeBy:
    """Of a finished run, by its folder or the checkpoint's in it."""
    return read_made_by(teacher if (teacher / CHECKPOINT).is_dir() else teacher.parent)
