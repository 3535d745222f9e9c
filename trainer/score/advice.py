"""What stands in the way of more accuracy, and what to try next, in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from prunion.trainer.score.pruning import Pruning

__all__ = ["CLEAR", "UNLEARNED", "Fit", "Limit", "Lost", "limit_line"]

# What stands in the way of more: BatchNorm's statistics, the budget, the images, too few epochs, or
# nothing that shows.
Limit = Literal["norms", "budget", "data", "epochs", "none", "unknown"]

# What pruning lost: something surely, at most a point as surely, or neither can be told.
Lost = Literal["surely", "little", "unknown"]

CLEAR = 0.01  # a point: less than that between shares of images is not spoken of
UNLEARNED = 0.9  # of the training images: a network below it has not learned what it could see
UNTOLD = Pruning(prunes=True)  # of a run whose files do not say how it was pruned


@dataclass(frozen=True)
class Fit:
    """How well a network answers what it learns from, and what it does not; means over domains.

    Attributes:
        trained, tested: right answers to training and to test images, as shares.
        whole: as `trained`, of the baseline; None without one.
        overfits: whether test images are answered worse by more than chance.
        told: whether it is known that the budget is not why no more is learned: there is a
            baseline, or nothing is pruned.
        seen_by: of training images, what the finished network answers; None where not known.
        of: whose training images `trained` and `whole` are of, in words; "" for all domains'.
    """

    trained: float
    tested: float
    whole: float | None = None
    overfits: bool = False
    told: bool = False
    seen_by: float | None = None
    of: str = ""

    @property
    def seen(self) -> str:
        """How much of which training images is learned, in words."""
        return f"{self.trained:.1%} of the training images" + (f" of {self.of}" if self.of else "")

    @property
    def is_low(self) -> bool:
        """Whether neither network has learned what it could see, as far as that is known."""
        return self.told and max(self.trained, self.whole or 0.0) < UNLEARNED


def limit_line(
    limit: Limit, fit: Fit | None, pruning: Pruning | None, share: float | None, lost: Lost
) -> str:
    """What `limit` means and what to try; "" where nothing is to be said.

    Args:
        pruning: how the run was pruned; None where that is not known.
        share: the budget as a share of the whole; None where it is none.
        lost: what is known of what pruning lost.
    """
    if limit == "unknown" or fit is None:
        return ""
    pruning = pruning or UNTOLD
    keys = " or ".join(pruning.binding(share))
    slack = ""
    if pruning.prunes and pruning.is_slack(share):
        slack = f"; {pruning.kept:.1%} is kept, far below the [budget] limit of {share:.1%}"
    if limit == "norms":
        return _norms_line(fit) + slack
    if limit == "budget":
        return _budget_line(fit, keys) + slack
    if limit == "epochs":
        return _epochs_line(fit)
    if limit == "none" and not pruning.prunes:
        return ""
    told = _data_line(fit, keys, lost) if limit == "data" else _none_line(keys, lost)
    return told + (slack if lost == "little" else "")


def _budget_line(fit: Fit, keys: str) -> str:
    """`keys` of [budget] are those that hold the run back, in words; none where no budget does."""
    what = "the budget is" if "limit" in keys else "[budget] own is" if keys else "channels are"
    against = "" if fit.whole is None else f", {fit.whole:.1%} with every channel"
    if fit.whole is not None and fit.whole - fit.trained < CLEAR:
        against += ", and answers fewer of the others"
    larger = f"a larger [budget] {keys}, or " if keys else ""
    told = f"{what} the limit: the network learns {fit.seen}{against}"
    return f"{told}. Try {larger}a longer [train] settle"


def _norms_line(fit: Fit) -> str:
    return (
        f"BatchNorm's statistics are the limit: the last steps answer {fit.seen} by those of each "
        f"batch, the network as it is exported {fit.seen_by or 0.0:.1%}. Try more epochs, or a "
        "larger [train] batch_size"
    )


def _epochs_line(fit: Fit) -> str:
    also, more = "", ""
    if fit.overfits:
        also, more = f", and {fit.tested:.1%} of the others answered", ", and more images"
    told = f"learning is the limit: only {fit.seen} are learned{also}"
    return f"{told}. Try more epochs, or another rate{more}"


def _data_line(fit: Fit, keys: str, lost: Lost) -> str:
    channels = ", and channels are not" if lost == "little" else ""
    told = (
        f"the images are the limit{channels}: the network learns {fit.seen} and answers "
        f"{fit.tested:.1%} of the others. Try more training images"
    )
    if fit.is_low:
        told += ", and more epochs"
    if lost == "little" and keys:
        told += f", or a smaller [budget] {keys}, which may cost little"
    if lost == "surely" and keys:  # which every channel has, of the same images
        told += f", or a larger [budget] {keys} for what pruning lost"
    return told


def _none_line(keys: str, lost: Lost) -> str:
    told = "nothing shows that more channels would help"
    if lost != "little":
        return f"{told}, or that fewer would do: more test images would tell"
    return f"{told}: a smaller [budget] {keys} may do" if keys else told
