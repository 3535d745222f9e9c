"""What a finished run was made by and of: its settings, images and classes, held against others'.

`record.json` has it as `made_by`. What an earlier prunion did not write down is unknown, which is
never taken for equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from prunion.runtime.base import read_json, shown
from prunion.runtime.errors import PrunionError
from prunion.runtime.images import same_images
from prunion.trainer.config import (
    RECORD,
    RunConfig,
    changed_keys,
    drop_ignored,
    has_own_weights,
    todays_config,
)
from prunion.trainer.score.pruning import baseline_of

__all__ = [
    "BESIDE",
    "PARTS",
    "MadeBy",
    "not_paired",
    "other_images",
    "other_run",
    "read_made_by",
    "recounted",
    "untold",
]

MadeBy = Mapping[str, Any]  # `config`, `domains`, `teacher`, `cost`: as `record.json` has it
APART = (("budget",), ("train", "own_epochs"))  # of a baseline's configuration
PAIRED = ("train", "test")  # images that two runs must have in common to be compared
PARTS = {"train": "training", "test": "test", "validation": "validation"}  # in words
BESIDE = {  # what else two runs may differ in, beside their settings, images and classes
    "teacher": "another teacher",
    "profile": "another profile of its device in [budget] profile",
    "cost": "another network, other prices of its layers, or an earlier version's count",
    "origin": "another checkpoint to build on",
    "importance": "another importance of the units",
}


def read_made_by(folder: Path) -> MadeBy:
    """What a finished run's folder tells; of an earlier prunion's the classes and counts alone."""
    path = folder / RECORD
    try:
        record = read_json(path) if path.is_file() else {}
        if "made_by" in record:
            made_by = dict(record["made_by"])
            for found in made_by["domains"].values():
                dict(found["images"]), dict(found["digests"])  # or the file is damaged
            return made_by
        found = {
            name: {
                "classes": [row["name"] for row in record["domains"][name]["classes"]],
                "images": dict(data["images"]),
            }
            for name, data in record["result"]["data"].items()
        }
    except (PrunionError, KeyError, TypeError, ValueError, AttributeError):
        return {}
    return {"domains": found}


def not_paired(baseline: MadeBy | None, pruned: MadeBy | None, names: Iterable[str]) -> str:
    """Why a run may not be compared with a baseline in the domains `names`; "" if it may."""
    names = list(names)
    baseline, pruned = baseline or {}, pruned or {}
    if longer := _longer(baseline, pruned):
        return longer
    found = [
        *_other_settings(baseline, _unpruned(pruned), APART),
        *(told for name in names for told in other_images(baseline, pruned, name, PAIRED)),
    ]
    if found:
        return found[0]
    if "config" not in baseline or "config" not in pruned or untold(baseline, pruned, names):
        return "of one of the two it is not known which images it was tested on"
    return ""


def _longer(baseline: MadeBy, pruned: MadeBy) -> str:
    """Whether an earlier prunion's baseline trained its trunk while the run thins its domains."""
    try:
        one, other = (
            RunConfig.from_json(drop_ignored(x.get("config"))).train for x in (baseline, pruned)
        )
    except PrunionError:  # not known, which is told elsewhere
        return ""
    epochs = other.own_epochs
    if not epochs or other.trunk != "tuned" or one.settle != other.settle + epochs:
        return ""
    return f"its trunk learned for {epochs} epochs more, in which the run's domains were thinned"


def other_run(before: MadeBy, now: MadeBy, without: Iterable[Any] = ()) -> str:
    """In what a run was another one than `now`, with both values; "" if nothing tells so.

    Args:
        without: keys of the configuration that may differ.
    """
    found = [*_other_settings(before, now, without)]
    for key, what in BESIDE.items():
        if key == "profile" and None in (before.get(key), now.get(key)):
            continue  # an earlier prunion noted the cost alone
        if "config" in before and "config" in now and before.get(key) != now.get(key):
            found.append(f"{what} (was {shown(before.get(key))}, is {shown(now.get(key))})")
    for name in now.get("domains", {}):
        found += other_images(before, now, name)
    return found[0] if found else ""


def recounted(before: MadeBy, now: MadeBy, without: Iterable[Any] = ()) -> bool:
    """Whether two runs differ in the cost alone, and it counts weights that a method adds.

    An earlier prunion counted those otherwise that a bundle folds away. Arguments of `other_run`.
    """
    config = now.get("config") or {}
    timed = config.get("budget", {}).get("kind") == "latency"  # of another profile perhaps
    if timed or not has_own_weights(config.get("train", {})):
        return False
    return not other_run({**before, "cost": now.get("cost")}, now, without)


def untold(one: MadeBy, other: MadeBy, names: Iterable[str]) -> list[str]:
    """The domains of which it is not known whether two runs have the same images."""

    def known(name: str, part: str) -> bool:
        return same_images(_digest(one, name, part), _digest(other, name, part)) is not None

    return [name for name in names if not all(known(name, part) for part in PAIRED)]


def _unpruned(made_by: MadeBy) -> MadeBy:
    """What the baseline of a run would be made by."""
    try:
        config = baseline_of(RunConfig.from_json(drop_ignored(made_by.get("config"))))
    except PrunionError:  # an earlier prunion's, or none
        return made_by
    return {**made_by, "config": config.to_json()}


def _other_settings(before: MadeBy, now: MadeBy, without: Iterable[Any]) -> Iterator[str]:
    if "config" in before and "config" in now:
        one, other = todays_config(before["config"]), todays_config(now["config"])
        for key, was, is_now in changed_keys(one, other, tuple(without)):
            yield f"another configuration ({key} was {shown(was)} and is {shown(is_now)})"


def other_images(
    before: MadeBy, now: MadeBy, name: str, parts: Iterable[str] = tuple(PARTS)
) -> Iterator[str]:
    """In what two runs' classes and images of a domain differ, as far as both tell."""
    one, other = (x.get("domains", {}).get(name, {}) for x in (before, now))
    if one.get("classes") and other.get("classes") and one["classes"] != other["classes"]:
        yield f"other classes of {name}"
    for part in parts:
        was, is_now = (x.get("images", {}).get(part) for x in (one, other))
        if one.get("images") and other.get("images") and was != is_now:
            yield f"other {PARTS[part]} images of {name} (was {was or 0:,}, is {is_now or 0:,})"
        elif same_images(_digest(before, name, part), _digest(now, name, part)) is False:
            yield f"other {PARTS[part]} images of {name}, as many as before"


def _digest(made_by: MadeBy, name: str, part: str) -> str:
    return str(made_by.get("domains", {}).get(name, {}).get("digests", {}).get(part, ""))
