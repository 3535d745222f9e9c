"""Whom a key of `[train]` is for: what would say nothing is refused, not taken without a word."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prunion.runtime.base import shown
from prunion.runtime.errors import ConfigError
from prunion.trainer.config.checks import (
    BY_PASSES,
    BudgetKind,
    RankingKey,
    RecipeName,
    check_held,
)
from prunion.trainer.config.domains import drop_unused
from prunion.trainer.config.method import METHODS, Method, method_traits

__all__ = [
    "KNOWN",
    "METHOD_KEYS",
    "RAMPED",
    "STEEP",
    "check_said",
    "decided_ranking",
    "drop_idle",
    "drop_ignored",
    "ignored",
    "misplaced",
    "settles_apart",
]

log = logging.getLogger(__name__)

PLACED: tuple[Method, ...] = ("series", "parallel", "svd")
# Methods that may have adapters of low rank beside the rest, and what `adapter_rank` brings along.
LOW_RANK: tuple[Method, ...] = ("bap", "ba2", "parallel")
WITH_RANK = ("adapters", "sites", "adapter_lr")
CUTTING: tuple[Method, ...] = tuple(name for name, traits in METHODS.items() if traits.prunes)
LEARNED: tuple[RecipeName, ...] = ("prunion", "paper")  # by which switches learn
RANKED: tuple[RecipeName, ...] = ("prunion", "once", "greedy")
RAMPED: tuple[RecipeName, ...] = ("prunion", "greedy")  # whose budget falls along a ramp


@dataclass(frozen=True)
class Known:
    """Where a key means something.

    Attributes:
        default: what it is where nothing is said.
        methods: that know it; without any all do.
        channels: whether only switches of whole channels know it, and no slices.
        recipes: that know it; without any all do.
    """

    default: Any
    methods: tuple[Method, ...] = ()
    channels: bool = False
    recipes: tuple[RecipeName, ...] = ()


# Of single methods. Runs of before there was such a key lack it where it has its default.
METHOD_KEYS: Mapping[str, Known] = {
    "affine": Known("full", ("affine",)),
    "affine_numbers": Known("layer", ("affine",)),
    "affine_gradient": Known("identity", ("affine",)),
    **{f"affine_k{place}": Known("auto", ("affine",)) for place in range(4)},
    "granularity": Known("channel", tuple(name for name, x in METHODS.items() if x.slices)),
    "adapters": Known("all", PLACED),
    "sites": Known("both", PLACED),
    "adapter_dropout": Known(0.0, PLACED),
    "adapter_decay": Known("auto", PLACED),
    "adapter_lr": Known("auto", tuple(name for name, x in METHODS.items() if x.adapter_lr)),
    "svd_share": Known(0.5, ("svd",)),
    "rank": Known(4, ("lora",)),
    "adapter_rank": Known(0, LOW_RANK),
    "taps_lambda": Known(0.25, ("taps",)),
    "packnet_prune": Known(0.75, ("packnet",)),
    "packnet_source": Known(0.5, ("packnet",)),
    "packnet_order": Known("given", ("packnet",)),
}
# Those, and what says how channels or slices are chosen and how a trunk is tuned.
KNOWN: Mapping[str, Known] = {
    **METHOD_KEYS,
    "ranking": Known("auto", CUTTING, channels=True, recipes=RANKED),
    "ramp_shape": Known("auto", CUTTING, channels=True, recipes=RAMPED),
    "switch_every": Known(8, CUTTING, channels=True, recipes=("prunion",)),
    "switch_travel": Known(2.0, CUTTING, channels=True, recipes=("prunion",)),
    "own_epochs": Known(0, CUTTING, channels=True),
    "sharing": Known("union", CUTTING, recipes=LEARNED),
    "sharing_weight": Known("learned", ("bap",), recipes=LEARNED),
    "domain_budget": Known("auto", CUTTING, recipes=LEARNED),
    "cut": Known("union", CUTTING),
    "settle_with": Known("auto", CUTTING, channels=True, recipes=LEARNED),
    "average": Known(0.0),
    "trunk_lr": Known(6e-4),
    "trunk_optimiser": Known("muon"),
    "distillation": Known(0.5),
    "balance": Known(0.5),
}
STEEP = 0.2  # of the cost: a ramp to less than that is geometric where nothing is said
OF_TUNED_TRUNKS = ("trunk_lr", "trunk_optimiser")
IN_STRETCHES = ("epoch", *BY_PASSES)
# Which learns switches along a ramp whatever the recipe.
THINNING = ("ramp_shape", "switch_every", "switch_travel")


def misplaced(given: Mapping[str, Any]) -> str:
    """The first key that says nothing beside the others, with why and the fix; "" if there is none.

    Args:
        given: the values of all keys of `[train]`.
    """
    for key, known in KNOWN.items():
        if given[key] == known.default or _decided(key, given):
            continue
        if (key, given[key]) == ("ranking", "importance"):  # which a run may have decided itself
            continue
        if reason := _reason(key, known, given):
            value = given[key]
            told = f'"{value}"' if isinstance(value, str) else _number(value)
            return f"{key} is {told}, but {reason}; remove {key}"
    return ""


def check_said(said: Mapping[str, Any], train: Mapping[str, Any]) -> None:
    """Refuse what a run file says, or a change to it, and its run would have otherwise.

    That is a number that 32 bits do not hold, and a key of `[train]` that the method sets, also one
    that says its default: `misplaced` cannot tell that from nothing said.

    Args:
        said: the file's tables.
        train: the values that all keys of `[train]` have in the end.
    """
    check_held(said)
    for key, value in said.get("train", {}).items():
        now = train[key]
        if isinstance(value, str) and value not in ("auto", now):
            by = f'method is "{train["method"]}" ({method_traits(train).what})'
            if key == "trunk" and train["granularity"] == "slice":  # with whole channels it is free
                by = 'granularity is "slice"'
            raise ConfigError(
                f'[train] {key} is "{value}", but {by}, which makes it "{now}": leave {key} out, '
                f'or give "{now}" (--set train.{key}={now})'
            )


def decided_ranking(given: Mapping[str, Any], kind: BudgetKind) -> RankingKey:
    """What `ranking` stands for beside a budget: "auto" where nothing is ranked.

    Cut by importance alone, channels of the early layers stay, whose operations are the dearest:
    so a budget of operations or of time is met by the price. Where switches learn, λ brings it in.

    Args:
        given: the values of all keys of `[train]`.
    """
    ranking: RankingKey = given["ranking"]
    if ranking != "auto" or _reason("ranking", KNOWN["ranking"], given):
        return ranking
    timed = kind in ("macs", "latency") and given["recipe"] != "prunion"
    return "importance-per-cost" if timed else "importance"


def ignored(given: Mapping[str, Any]) -> dict[str, Any]:
    """Every such key with its default.

    Args:
        given: some of the keys, of an earlier prunion's file: what is none is told elsewhere.
    """
    values = {**{key: known.default for key, known in KNOWN.items()}, **given}
    values = {"method": "bap", "recipe": "prunion", "trunk": "tuned", "teacher": "", **values}
    values = {"ramp": 1, "settle": 1, **values}  # an earlier one's that does not say had both
    values = {"order": "joint", "head_start": "auto", **values}
    if not isinstance(values["method"], str) or values["method"] not in METHODS:
        return {}
    return {
        key: known.default
        for key, known in KNOWN.items()
        if values[key] != known.default
        and not _decided(key, values)
        and _reason(key, known, values)
    }


def drop_ignored(run: Any) -> Any:
    """A run as an earlier prunion wrote it, without the keys that said nothing in it.

    One that does not say what moved its trunk had AdamW.
    """
    if not isinstance(run, dict):
        return run
    domains, train, backbone = (run.get(key) for key in ("domains", "train", "backbone"))
    if isinstance(backbone, dict) and backbone.get("weights", "default") in ("default", "none"):
        run = {**run, "backbone": {k: x for k, x in backbone.items() if k != "match"}}
    if isinstance(domains, dict):
        run = {**run, "domains": drop_unused(domains)}
    if isinstance(train, dict):
        budget = run.get("budget")
        if isinstance(budget, dict) and budget.get("own", 1) == 1:  # had another default once
            train = {**train, "own_epochs": 0}
        train = {"trunk_optimiser": "adamw", **train}
        gone = ignored(train)
        run = {**run, "train": {key: x for key, x in train.items() if key not in gone}}
    return run


def drop_idle(run: Any) -> Any:
    """A run file's tables without the keys of `[train]` that say nothing; the log names them."""
    train = run.get("train") if isinstance(run, dict) else None
    if not isinstance(train, dict) or not (gone := ignored(train)):
        return run
    log.warning("[train] %s: says nothing beside the other keys, and goes", ", ".join(gone))
    return {**run, "train": {key: x for key, x in train.items() if key not in gone}}


def settles_apart(given: Mapping[str, Any]) -> str:
    """What to set so that every domain settles with all channels of the union; "" if it does.

    Args:
        given: the values of all keys of `[train]`.
    """
    if not given["settle"]:
        return "settle is 0: give settle epochs"
    if given["method"] == "ba2":
        return 'method is "ba2", which cuts each alone: remove it'
    if given["cut"] == "domains":
        return 'cut is "domains": set cut = "union"'
    with_own = given["settle_with"] == "auto" and given["recipe"] == "paper"
    return 'set settle_with = "union"' if with_own or given["settle_with"] == "own" else ""


def _decided(key: str, given: Mapping[str, Any]) -> bool:
    """Whether the value is what the method sets it to."""
    return (given["method"], key, given[key]) == ("ba2", "sharing", "none")


def _reason(key: str, known: Known, given: Mapping[str, Any]) -> str:
    method, recipe = given["method"], given["recipe"]
    traits = method_traits(given)
    named = f'method is "{method}" ({traits.what})'
    methods = _either(known.methods)
    if known.methods and method not in known.methods:
        ranked = bool(given["adapter_rank"]) and method in LOW_RANK
        if not (ranked and key in WITH_RANK):
            channels = ' with granularity = "channel"' if known.channels else ""
            return f"{named}: it is for {methods}{channels}"
    if known.channels and given["granularity"] == "slice":
        return f'granularity is "slice": it is for {methods} with granularity = "channel"'
    thins = key in THINNING and bool(given["own_epochs"])
    if known.recipes and recipe not in known.recipes and not thins:
        return f'recipe is "{recipe}": it is for recipe {_either(known.recipes)}'
    if key in THINNING and not (given["ramp"] or thins):
        return "ramp is 0: it is for the epochs of a ramp"
    if key == "taps_lambda" and not given["ramp"]:
        return "ramp is 0: it is charged for in the epochs of a ramp"
    if key == "switch_every" and given["order"] in IN_STRETCHES:
        return (
            f'order is "{given["order"]}", in which domains come in stretches and switches learn '
            'in every step: it is for order "joint" or "batch"'
        )
    if key == "balance" and given["order"] in BY_PASSES and not _steps_jointly(given):
        return (
            f'order is "{given["order"]}", by passes over each domain\'s images: it is for others'
        )
    # Cut at once, a run settles from its warm-up on.
    if key == "average" and not (given["settle"] or (recipe == "once" and given["ramp"])):
        return "settle is 0: it is for the epochs of settling"
    if key == "sharing_weight" and given["sharing"] == "none":
        return 'sharing is "none": it is for a sharing loss'
    if key == "distillation" and not given["teacher"]:
        return "teacher is not given: it is for a run that is taught by another's network"
    if key in OF_TUNED_TRUNKS and (traits.trunk or given["trunk"]) == "frozen":
        frozen = named if traits.trunk else 'trunk is "frozen"'
        return f"{frozen}: it is for a trunk that is tuned"
    return ""


def _steps_jointly(given: Mapping[str, Any]) -> bool:
    """Whether heads are fitted, or channels ranked, on joint steps whatever a run's order is."""
    fits = given["head_start"] == "fitted"
    fits |= given["head_start"] == "auto" and given["recipe"] != "paper"
    return fits or not _reason("ranking", KNOWN["ranking"], given)


def _either(names: tuple[str, ...]) -> str:
    quoted = [f'"{name}"' for name in names]
    return " or ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)


def _number(value: Any) -> str:
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    return f"{value:g}" if plain else shown(value).lower()
