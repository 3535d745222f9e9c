"""Single values of a run file: checks that fail in one line with key and fix, and choices."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal, get_args

from prunion.runtime.base import is_number, is_whole, shown
from prunion.runtime.errors import ConfigError, printable

__all__ = [
    "BY_PASSES",
    "IN_TURNS",
    "Auto",
    "BackboneSource",
    "BudgetKind",
    "CutFor",
    "Device",
    "DomainSource",
    "HeadOptimiser",
    "HeadStart",
    "Learned",
    "Phase",
    "Placement",
    "Precision",
    "RampShape",
    "Ranking",
    "RankingKey",
    "RecipeName",
    "SettleWith",
    "Sharing",
    "SharingLoss",
    "StepOrder",
    "Trunk",
    "TrunkFrom",
    "TrunkOptimiser",
    "WeightMatch",
    "check_bool",
    "check_choice",
    "check_choices",
    "check_epochs",
    "check_held",
    "check_int",
    "check_kept",
    "check_keys",
    "check_number",
    "check_rate",
    "check_table",
    "check_text",
    "check_triple",
    "key_of",
]


LEAST_FLOAT = 2.0**-126  # the smallest number of 32 bits with all its digits
# Sums of squares of what it divides, as BatchNorm's variances, are numbers of 32 bits. A bundle may
# say less (`runtime.bundle`), for runs of before did.
LEAST_STD = 1e-15


def key_of(table: str, key: str) -> str:
    """How messages name a key: `[budget] limit`, or `seed` at the top of the file."""
    return f"[{table}] {key}" if table else key


def check_table(table: str, value: Any) -> dict[str, Any]:
    """`value` if it is a table; otherwise a ConfigError."""
    if not isinstance(value, dict):
        raise ConfigError(
            f"[{table}] is {shown(value)}: make it a table, a line [{table}] with keys"
        )
    return value


def check_keys(
    table: str, given: Iterable[str], known: Sequence[str], required: Sequence[str] = ()
) -> None:
    """Refuse unknown keys (with the nearest known one) and missing required ones."""
    given = list(given)
    for key in given:
        if key not in known:
            raise ConfigError(
                f"{key_of(table, key)} is not a key of a run file: {_hint(key, known)}"
            )
    for key in required:
        if key not in given:
            if table:
                raise ConfigError(f"{key_of(table, key)} is missing: add it to [{table}]")
            line = "[domains.NAME]" if key == "domains" else f"[{key}]"  # what a file needs: tables
            raise ConfigError(f"{key} is missing: add it as a table, a line {line} with its keys")


def check_kept(table: str, given: Iterable[str], cls: type, own: Sequence[str]) -> None:
    """Refuse what a domain that comes later has from its run: keys of `cls` but its `own`.

    All of them are named, in the file's order: whoever gives the run's own file has many.
    """
    kept = {x.name for x in fields(cls)} - set(own)
    if others := ", ".join(key for key in given if key in kept):
        raise ConfigError(
            f"{key_of(table, others)} means nothing for a domain that comes later, which has the "
            "run's: remove it"
        )


def _hint(key: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"remove it (known here: {', '.join(known)})"


def check_bool(table: str, key: str, value: object) -> bool:
    """`value` if it is true or false."""
    if not isinstance(value, bool):
        raise ConfigError(f"{key_of(table, key)} is {shown(value)}: write true or false, unquoted")
    return value


def check_int(table: str, key: str, value: object, low: int, high: int) -> int:
    """`value` if it is a whole number in `low … high`; true and false are not numbers."""
    if isinstance(value, int) and is_whole(value, low, high):
        return value
    raise ConfigError(
        f"{key_of(table, key)} is {shown(value)}: give a whole number from {low} to {high}"
    )


def check_epochs(table: str, key: str, value: object, last: int) -> tuple[int, ...]:
    """`value` as epochs after which the rates fall to a tenth, each from 1 to `last`."""
    if not isinstance(value, (list, tuple)) or not value:
        raise ConfigError(
            f"{key_of(table, key)} is {shown(value)}: give the epochs after which the rates "
            'fall to a tenth, such as [15, 30], or "auto"'
        )
    return tuple(check_int(table, key, epoch, 1, last) for epoch in value)


def check_number(
    table: str, key: str, value: object, low: float, high: float, *, open_low: bool = False
) -> float:
    """`value` as a float if it is a number in `low … high` (above `low` if `open_low`)."""
    if isinstance(value, (int, float)) and is_number(value):
        above = low < value if open_low else low <= value
        if above and value <= high:
            return float(value)
    span = f"above {low:g} and at most {high:g}" if open_low else f"from {low:g} to {high:g}"
    raise ConfigError(f"{key_of(table, key)} is {shown(value)}: give a number {span}")


def check_rate(key: str, value: object, high: float, *, open_low: bool = True) -> None:
    """Raise ConfigError unless a key of `[train]` is "auto" or a number (as `check_number`)."""
    if value == "auto":
        return
    if isinstance(value, str):
        raise ConfigError(f'[train] {key} is {shown(value)}: give a number such as 1e-3, or "auto"')
    check_number("train", key, value, 0, high, open_low=open_low)


def check_text(table: str, key: str, value: object, *, empty: bool = False) -> str:
    """`value` if it is a string (not an empty one, unless `empty`)."""
    if not isinstance(value, str) or not (empty or value.strip()):
        raise ConfigError(f"{key_of(table, key)} is {shown(value)}: give a string in quotes")
    if printable(value) != value:
        raise ConfigError(f"{key_of(table, key)} is {shown(value)}: remove its control characters")
    return value


def check_choice(table: str, key: str, value: object, choices: Sequence[str]) -> str:
    """`value` if it is one of `choices`."""
    wanted = " or ".join(f'"{choice}"' for choice in choices)
    if not isinstance(value, str) or value not in choices:
        raise ConfigError(f"{key_of(table, key)} is {shown(value)}: use {wanted}")
    return value


def check_triple(
    table: str, key: str, value: object, *, open_low: bool = False
) -> tuple[float, float, float]:
    """`value` as three floats, one per colour channel, each in 0 … 1."""
    if not isinstance(value, (list, tuple)) or len(value) != 3:
        raise ConfigError(
            f"{key_of(table, key)} is {shown(value)}: give three numbers, one for each of R, G, B"
        )
    try:
        red, green, blue = (
            check_number(table, key, item, 0, 1, open_low=open_low) for item in value
        )
    except ConfigError as exc:
        raise ConfigError(f"{exc} (for pixels divided by 255)") from None
    return red, green, blue


def check_held(value: Any, path: tuple[str, ...] = ()) -> None:
    """Refuse numbers of a run file that 32 bits, in which most are used, would make others of.

    Not for what a run of before has stored: an earlier prunion took them.

    Args:
        value: the file's tables, each key checked for itself, or what is at `path` in them.
    """
    if isinstance(value, dict):
        for name, item in value.items():
            if (*path, name) != ("backbone", "arguments"):  # the network's own, of any kind
                check_held(item, (*path, name))
    elif isinstance(value, list):
        for item in value:
            check_held(item, path)
    elif isinstance(value, float):
        std = path[-1] == "std"
        least = LEAST_STD if std else LEAST_FLOAT
        if 0 < abs(value) < least:
            told = f"{key_of('.'.join(path[:-1]), path[-1])} is {shown(value)}"
            fix = f"{least:.2g} or more" + ("" if std else ", or 0 where it may be that")
            raise ConfigError(f"{told}, too little for numbers of 32 bits: give {fix}")


Auto = Literal["auto"]
Device = Literal["auto", "cpu", "cuda", "mps"]

BackboneSource = Literal["torchvision", "timm", "prunion", "python"]
WeightMatch = Literal["name", "order"]  # how a file's tensors find the network's
DomainSource = Literal["files", "torchvision", "huggingface", "python"]

BudgetKind = Literal["params", "macs", "bytes", "switches", "latency"]

RecipeName = Literal["prunion", "once", "greedy", "paper"]
Phase = Literal["warmup", "ramp", "settle"]
# Which domains share a step; the last two: one from its first step to its last, PackNet's alone.
StepOrder = Literal["joint", "batch", "epoch", "round-robin", "tasks", "task-passes"]
IN_TURNS: tuple[StepOrder, ...] = ("tasks", "task-passes")
# An epoch is one pass over each domain's images, in batches of its own.
BY_PASSES: tuple[StepOrder, ...] = ("round-robin", "task-passes")
Placement = Literal["images", "domains"]  # what each of several processes has
Trunk = Literal["frozen", "tuned"]
HeadStart = Literal["auto", "fitted", "random"]
HeadOptimiser = Literal["adamw", "sgd"]
RampShape = Literal[Auto, "linear", "geometric"]
TrunkFrom = Literal["start", "settle"]
TrunkOptimiser = Literal["muon", "adamw"]
Ranking = Literal["importance", "importance-per-cost", "fisher-per-cost", "random"]
RankingKey = Literal[Auto, Ranking]
Precision = Literal["fp32", "bf16", "fp16"]

SharingLoss = Literal["union", "intersection", "jaccard"]
Sharing = Literal[SharingLoss, "none"]
Learned = Literal["learned"]  # a weight λ that dual ascent finds
CutFor = Literal["union", "domains"]  # what is brought within the budget in the end
SettleWith = Literal["auto", "union", "own"]
CHOICES = {  # keys of `[train]`
    "recipe": RecipeName,
    "trunk": Trunk,
    "order": StepOrder,
    "placement": Placement,
    "ramp_shape": RampShape,
    "trunk_from": TrunkFrom,
    "head_start": HeadStart,
    "head_optimiser": HeadOptimiser,
    "trunk_optimiser": TrunkOptimiser,
    "ranking": RankingKey,
    "sharing": Sharing,
    "cut": CutFor,
    "settle_with": SettleWith,
    "precision": Precision,
}


def check_choices(train: Mapping[str, Any]) -> None:
    """Raise ConfigError if a key of `[train]` that takes one of a few words has another value."""
    for key, kinds in CHOICES.items():
        check_choice("train", key, train[key], get_args(kinds))
