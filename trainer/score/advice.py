"""What stands in the way of more accuracy, and what to try next, in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from prunion.trainer.score.pruning import Pruning

__all__ = ["CLEAR", "UNLEARNED", "Fit", "Limit", "Lost", "limit_line"]

# What stands in the way of more: the budget, the images, too few epochs, or nothing that shows.
Limit = Literal["budget", "data", "epochs", "none", "unknown"]

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
        of: whose training images `trained` and `whole` are of, in words; "" for all domains'.
    """

    trained: float
    tested: float
    whole: float | None = None
    overfits: bool = False
    told: bool = False
    of: str = ""

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
        slack = f"{pruning.kept:.1%} is kept, far below the [budget] limit of {share:.1%}"
    seen = f"{fit.trained:.1%} of the training images" + (f" of {fit.of}" if fit.of else "")
    free = lost == "little"
    smaller = f"a smaller [budget] {keys}" if free and keys else ""
    if limit == "budget":
        what = "the budget is" if "limit" in keys else "[budget] own is" if keys else "channels are"
        against = "" if fit.whole is None else f", {fit.whole:.1%} with every channel"
        if fit.whole is not None and fit.whole - fit.trained < CLEAR:
            against += ", and answers fewer of the others"
        larger = f"a larger [budget] {keys}, or " if keys else ""
        told = f"{what} the limit: the network learns {seen}{against}. Try {larger}a longer "
        return told + "[train] settle" + (f"; {slack}" if slack else "")
    if limit == "epochs":
        also, more = "", ""
        if fit.overfits:
            also, more = f", and {fit.tested:.1%} of the others answered", ", and more images"
        told = f"learning is the limit: only {seen} are learned{also}"
        return f"{told}. Try more epochs, or another rate{more}"
    if limit == "data":
        more = ", and more epochs" if fit.is_low else ""
        told = (
            f"the images are the limit{', and channels are not' if free else ''}: the network "
            f"learns {seen} and answers {fit.tested:.1%} of the others. Try more training images"
        )
        told += more + (f", or {smaller}, which may cost little" if smaller else "")
        if lost == "surely" and keys:  # which every channel has, of the same images
            told += f", or a larger [budget] {keys} for what pruning lost"
    elif not pruning.prunes:
        return ""
    elif not free:
        return (
            "nothing shows that more channels would help, or that fewer would do: more test images "
            "would tell"
        )
    else:
        told = "nothing shows that more channels would help"
        told += f": {smaller} may do" if smaller else ""
    return told + (f"; {slack}" if slack and free else "")
