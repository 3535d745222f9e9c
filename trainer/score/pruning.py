"""How a finished run was pruned: by what, down to how much, and which of its limits held it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from prunion.runtime.base import read_json
from prunion.runtime.errors import ConfigError, PrunionError
from prunion.trainer.config import (
    CHECKPOINT,
    CHECKPOINT_FILE,
    RECORD,
    BudgetConfig,
    RunConfig,
    TrainConfig,
)

__all__ = ["Pruning", "baseline_of", "check_baseline", "idle_keys", "keeps_all", "read_pruning"]

OVERSHOOT = 1.1  # what learning may leave of the budget before the last cut, times the budget
FILLED = 0.75  # of a limit: what stays below it was held by something else

# Of [train], how channels are chosen that a budget has no room for.
OF_CHOICE = (
    *("ranking", "ramp_shape", "switch_every", "switch_travel", "sharing", "sharing_weight"),
    *("domain_budget", "cut", "settle_with"),
)
Lead = Literal["learning", "the ramp", ""]


@dataclass(frozen=True)
class Pruning:
    """How a run was pruned.

    Attributes:
        prunes: whether its budget could leave anything out.
        lead: what brought the channels down before the last cut; "" where nothing did.
        union: whether the last cut was the union's, and not each domain's.
        kept: what the union costs in the end, as a share of the backbone; None where the budget is
            not the union's or nothing tells it.
        own: the most that a domain may use of the union, as a share.
        used: the most that one does use; None where nothing tells it.
    """

    prunes: bool
    lead: Lead = ""
    union: bool = True
    kept: float | None = None
    own: float = 1.0
    used: float | None = None

    def is_slack(self, limit: float | None) -> bool:
        """Whether far less is kept than `limit`, a share, allows."""
        if limit is None or self.kept is None or limit >= 1:
            return False
        return self.kept < FILLED * limit

    def binding(self, limit: float | None) -> tuple[str, ...]:
        """Which keys of `[budget]` held the run: `limit`, `own`, both or none."""
        capped = (limit is None or limit < 1) and not self.is_slack(limit)
        thinned = self.own < 1 and (self.used is None or self.used >= FILLED * self.own)
        return tuple(
            key for key, binds in (("limit", capped), ("own", thinned)) if self.prunes and binds
        )

    def cut_line(self, limit: float | None, uncut: float) -> str:
        """That the last cut had to take much, in words; "" where it had not.

        Args:
            limit: the budget, as a share.
            uncut: what was left before the last cut, as a share.
        """
        if limit is None or self.kept is None or not (self.prunes and self.lead and self.union):
            return ""
        if not (self.kept <= limit * (1 + 1e-9) and uncut > OVERSHOOT * limit):
            return ""
        return (
            f"{self.lead} left {uncut:.1%} where {limit:.1%} was asked, and the last cut took the "
            "rest: try a longer [train] ramp"
        )


def keeps_all(config: RunConfig) -> str:
    """Why a run leaves nothing out for its budget's sake, in words; "" where it does."""
    train, budget = config.train, config.budget
    if not train.traits.prunes and train.granularity == "channel":
        return f'[train] method is "{train.method}" ({train.traits.what})'
    if budget.is_fraction and budget.amount == 1 and budget.own == 1:
        return "[budget] limit is the whole network"
    return ""


def idle_keys(config: RunConfig) -> list[str]:
    """What a run says of how channels are chosen, though its budget has room for all of them."""
    train = config.train
    # Slices and the paper's recipe learn beside any budget; another method refuses these keys.
    learns = train.granularity == "slice" or train.recipe == "paper"
    if learns or not train.traits.prunes or not keeps_all(config):
        return []
    usual = replace(config, train=TrainConfig(method=train.method, recipe=train.recipe)).train
    return [key for key in OF_CHOICE if getattr(train, key) != getattr(usual, key)]


def check_baseline(config: RunConfig) -> None:
    """Raise ConfigError if a run's baseline would be the same run once more, or another one."""
    if why := keeps_all(config):
        raise ConfigError(
            f"--baseline trains the same run without pruning, and this one prunes nothing: {why}; "
            "leave it out (baseline = False)"
        )
    if _only_settles(config) and config.train.trunk_from == "settle":
        raise ConfigError(
            "--baseline only settles where this run's switches learn, and [train] trunk_from is "
            '"settle": its trunk would learn for longer; leave one of them out'
        )
    if config.train.own_epochs and config.train.trunk == "tuned":
        raise ConfigError(
            "--baseline has nothing to thin, and this run's trunk stands still for the "
            f"{config.train.own_epochs} [train] own_epochs: the baseline's would learn for longer, "
            "or the rest of it for less; leave one of them out"
        )


def _only_settles(config: RunConfig) -> bool:
    """Whether switches learn whatever the budget allows, until a run settles."""
    return config.train.recipe == "paper" or config.train.granularity == "slice"


def baseline_of(config: RunConfig) -> RunConfig:
    """The same run without pruning: for as many epochs, every switch on from first to last.

    It has no budgets of single domains to thin for, so where the trunk is frozen anyway it settles
    for these epochs too; a tuned one stands still in them. In the paper's recipe, and where slices
    are switched, switches learn whatever the budget allows until a run settles: there it does
    nothing else.
    """
    train = config.train
    longer = 0 if train.trunk == "tuned" else train.own_epochs
    whole = replace(train.without_thinning(), settle=train.settle + longer)
    if _only_settles(config):
        whole = replace(whole, warmup=0, ramp=0, settle=train.warmup + train.ramp + whole.settle)
    whole = replace(whole, ramp_shape="auto")  # of nothing that falls
    return replace(config, budget=BudgetConfig(1.0), train=whole)


def read_pruning(folder: Path) -> Pruning | None:
    """How the run of a folder was pruned; None where its files do not tell."""
    try:
        written = read_json(folder / CHECKPOINT / CHECKPOINT_FILE)
        config = RunConfig.from_checkpoint(written["config"])
        result = read_json(folder / RECORD)["result"]
        return _pruning(config, result["budget"], (result.get("own") or {}).get("macs", {}))
    except (KeyError, TypeError, ValueError, AttributeError, PrunionError):
        return None


def _pruning(config: RunConfig, found: dict[str, float], own: dict[str, float]) -> Pruning:
    budget, train = config.budget, config.train
    backbone = 1.0 if budget.is_fraction else found.get("backbone")
    kept = float(found["value"]) / backbone if backbone else None
    # An amount may be more than all, which only the network's cost tells.
    whole = not budget.is_fraction and backbone is not None and budget.amount >= backbone
    learns = {
        "prunion": train.ramp > 0,
        "paper": train.warmup + train.ramp > 0,
        "greedy": train.ramp > 0,
        "once": False,
    }
    slices = train.granularity == "slice"  # which learn until a run settles
    learning = train.warmup + train.ramp > 0 if slices else learns[train.recipe]
    lead: Lead = "the ramp" if train.recipe == "greedy" else "learning"
    return Pruning(
        prunes=not keeps_all(config) and not (whole and budget.own == 1),
        lead=lead if (train.traits.prunes or slices) and learning and _pushed(train) else "",
        union=train.cut == "union",
        # An earlier prunion told of slices what the graph costs.
        kept=kept if train.traits.prunes or found.get("slices") else None,
        own=budget.own,
        used=max((float(share) for share in own.values()), default=None),
    )


def _pushed(train: TrainConfig) -> bool:
    """Whether anything charges for what is kept before the last cut: a longer ramp helps there."""
    own = train.domain_budget
    if train.recipe == "greedy" or own is True:
        return True
    paper = train.recipe == "paper" or train.granularity == "slice"
    if own == "auto" and (paper or train.sharing == "none"):
        return True
    if not paper and train.sharing in ("intersection", "jaccard"):
        return True  # beside which the network as a whole is charged for
    return train.sharing != "none" and train.sharing_weight != 0
