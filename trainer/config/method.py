"""What a run's method is, in so far as it decides other keys of `[train]`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from prunion.runtime.base import shown
from prunion.runtime.errors import ConfigError
from prunion.trainer.config.checks import (
    IN_TURNS,
    check_choice,
    check_int,
    check_number,
    check_rate,
)

__all__ = [
    "LOW_RANK_LR",
    "METHODS",
    "MOST_TURNS",
    "AffineForm",
    "AffineNumbers",
    "Granularity",
    "MaskGradient",
    "Method",
    "MethodTraits",
    "Norms",
    "Number",
    "Sites",
    "Stages",
    "TaskOrder",
    "check_settings",
    "contradiction",
    "has_own_weights",
    "method_traits",
]

Method = Literal[
    "bap",
    "ba2",
    "norms",
    "feature",
    "finetune",
    "piggyback",
    "affine",
    "series",
    "parallel",
    "svd",
    "packnet",
    "taps",
    "lora",
]
Stages = Literal["all", "early", "mid", "late"]
Sites = Literal["both", "second"]
TaskOrder = Literal["given", "reversed"]
Granularity = Literal["channel", "slice"]
Norms = Literal["auto", "own", "frozen"]
AffineForm = Literal["simple", "full"]
AffineNumbers = Literal["layer", "filter"]
MaskGradient = Literal["identity", "sigmoid"]
Number = float | Literal["auto", "learned"]


@dataclass(frozen=True)
class MethodTraits:
    """What a method means for a run.

    Attributes:
        what: in words, for messages.
        prunes: whether channels are removed, and the budget kept.
        trunk: what becomes of the trunk; "" leaves it to the run.
        own_norms: whether each domain has a BatchNorm of its own, by default.
        own_weights: each domain has trunk weights of its own, and in a bundle a graph of its own.
        masks: whether scores are learned that `switch_lr` moves.
        adapter_lr: what `adapter_lr` is where the run does not say; 0 where it means nothing.
        by_turns: whether domains learn one after the other.
        slices: whether its switches may be those of single slices.
    """

    what: str
    prunes: bool = False
    trunk: Literal["", "frozen", "tuned"] = "frozen"
    own_norms: bool = True
    own_weights: bool = False
    masks: bool = False
    adapter_lr: float = 0.0
    by_turns: bool = False
    slices: bool = False


METHODS: dict[Method, MethodTraits] = {
    "bap": MethodTraits("budget-aware pruning", prunes=True, trunk="", slices=True),
    "ba2": MethodTraits("budget-aware adapters", prunes=True, trunk="", slices=True),
    "norms": MethodTraits("a BatchNorm and a head for each domain"),
    "feature": MethodTraits("a head for each domain on the frozen backbone", own_norms=False),
    "finetune": MethodTraits("a network for each domain", trunk="tuned", own_weights=True),
    "piggyback": MethodTraits(
        "a mask over the weights for each domain", own_norms=False, own_weights=True, masks=True
    ),
    "affine": MethodTraits(
        "an affine transform of the weights for each domain", own_weights=True, masks=True
    ),
    # A tenth of its paper's, whose trunk was pretrained with adapters in it. Their BatchNorm makes
    # about three times as much of what comes out of another trunk's convolutions.
    "series": MethodTraits("an adapter behind each convolution", own_weights=True, adapter_lr=0.01),
    "parallel": MethodTraits(
        "an adapter beside each convolution", own_weights=True, adapter_lr=0.1
    ),
    "svd": MethodTraits(
        "adapters of which all domains share a part", own_weights=True, adapter_lr=0.1
    ),
    "packnet": MethodTraits(
        "weights divided among the domains",
        own_norms=False,
        own_weights=True,
        adapter_lr=1e-3,
        by_turns=True,
    ),
    "taps": MethodTraits("own weights of the layers it picks", own_weights=True, adapter_lr=1e-2),
    "lora": MethodTraits("a low-rank sum to each weight", own_weights=True, adapter_lr=1e-3),
}

LOW_RANK_LR = 1e-3
MOST_TURNS = 254  # domains that a byte tells apart, and the backbone and nobody beside


def method_traits(given: Mapping[str, Any]) -> MethodTraits:
    """What the method of a run means, whose keys of `[train]` these are: of slices other things."""
    found = METHODS[given["method"]]
    if given["granularity"] == "slice":
        # Nothing can be cut physically, and every domain has a mask over the frozen trunk.
        what = f"{found.what}, slice by slice"
        frozen = replace(found, what=what, prunes=False, trunk="frozen")
        return replace(frozen, own_weights=True, masks=True)
    return replace(found, adapter_lr=LOW_RANK_LR) if given["adapter_rank"] else found


def has_own_weights(given: Mapping[str, Any]) -> bool:
    """Whether domains store weights beside the trunk's, which a count of the trunk leaves out.

    Args:
        given: keys of `[train]`, of a file too: those that say nothing may be missing.
    """
    keys = {"method": "bap", "granularity": "channel", "adapter_rank": 0} | dict(given)
    return method_traits(keys).own_weights or bool(keys["adapter_rank"])


def check_settings(given: Mapping[str, Any]) -> None:
    """Raise ConfigError if the method, or a key of single methods, has a value that is none.

    Args:
        given: the values of all keys of `[train]`.
    """
    for key, kinds in (
        ("method", Method),
        ("norms", Norms),
        ("affine", AffineForm),
        ("affine_numbers", AffineNumbers),
        ("affine_gradient", MaskGradient),
        ("granularity", Granularity),
        ("adapters", Stages),
        ("sites", Sites),
        ("packnet_order", TaskOrder),
    ):
        check_choice("train", key, given[key], get_args(kinds))
    check_rate("adapter_decay", given["adapter_decay"], 1, open_low=False)
    check_rate("adapter_lr", given["adapter_lr"], 10)
    for key in (f"affine_k{place}" for place in range(4)):
        if given[key] in ("auto", "learned"):
            continue
        if isinstance(given[key], str):
            raise ConfigError(
                f'[train] {key} is {shown(given[key])}: give a number that stays, "learned", '
                'or "auto"'
            )
        check_number("train", key, given[key], -1e3, 1e3)
    check_number("train", "adapter_dropout", given["adapter_dropout"], 0, 0.9)
    check_number("train", "svd_share", given["svd_share"], 0, 1, open_low=True)
    check_int("train", "rank", given["rank"], 1, 4096)
    check_int("train", "adapter_rank", given["adapter_rank"], 0, 4096)
    check_number("train", "taps_lambda", given["taps_lambda"], 0, 100)
    check_number("train", "packnet_prune", given["packnet_prune"], 0, 0.99)
    check_number("train", "packnet_source", given["packnet_source"], 0, 1)


def contradiction(traits: MethodTraits, given: Mapping[str, Any]) -> str:
    """Which of the other keys of `[train]` contradicts the method, or `adapter_rank`; "" if none.

    Args:
        given: the values of all keys, each checked for itself.
    """
    if wrong := _against_method(traits, given):
        return f'{wrong}, but method is "{given["method"]}" ({traits.what})'
    return _against_rank(given) if given["adapter_rank"] else ""


def _against_method(traits: MethodTraits, given: Mapping[str, Any]) -> str:
    method = given["method"]
    published = given["recipe"] == "paper" and given["granularity"] == "slice"
    if not traits.prunes and given["recipe"] != "prunion" and not published:
        return f'recipe is "{given["recipe"]}", which says how channels are cut'
    if traits.prunes and given["norms"] != "auto":
        return f'norms is "{given["norms"]}", and switches act through each domain\'s own'
    if given["compile"] and traits.own_weights and method != "finetune":
        return "compile is true, which fixes the weights"
    if method == "finetune" and given["trunk"] == "frozen":
        return 'trunk is "frozen"'
    if traits.by_turns and given["average"]:
        return f"average is {given['average']:g}"
    if traits.by_turns != (given["order"] in IN_TURNS) and given["order"] != "joint":
        return f'order is "{given["order"]}"'
    if method == "ba2" and given["sharing"] not in ("union", "none"):
        return f'sharing is "{given["sharing"]}"'
    return ""


def _against_rank(given: Mapping[str, Any]) -> str:
    rank = f"adapter_rank is {given['adapter_rank']}"
    if given["compile"]:
        return f"compile is true, which fixes the weights, but {rank}"
    if given["granularity"] == "slice":
        return f'{rank} and granularity is "slice", but slices have no adapters beside them'
    for key, default in (("adapter_decay", "auto"), ("adapter_dropout", 0)):
        if given[key] != default:
            return f"{rank}, with weight_decay and no dropout, but {key} is {given[key]:g}"
    return ""
