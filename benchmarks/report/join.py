"""What belongs together: a bundle and its run, a baseline and its run, answers and their images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prunion.benchmarks.report.charts_answers import check_answers
from prunion.benchmarks.report.measured import check_measured
from prunion.benchmarks.report.subject import Identity, Subject
from prunion.runtime.base import read_json, shown
from prunion.runtime.bundle import Manifest
from prunion.runtime.errors import InputError, PrunionError
from prunion.trainer.config import (
    BASELINE,
    CHECKPOINT,
    CHECKPOINT_FILE,
    changed_keys,
    has_own_weights,
    todays_config,
)
from prunion.trainer.score import MadeBy, not_paired, read_made_by

__all__ = [
    "joined",
    "read_baseline",
    "read_file",
    "same_network",
    "stored_by_run",
    "stored_in",
    "with_file",
]

MOVED = (("budget", "profile"),)  # a checkpoint has its own copy, wherever its folder is


def same_network(run: Identity, bundle: Identity) -> bool:
    """Whether a bundle is the whole of a run's network; not where that cannot be told."""
    if set(run.accuracy) != set(bundle.accuracy):
        return False  # of some of its domains alone
    if bundle.model:
        return run.model == bundle.model
    if not bundle.config or run.accuracy != bundle.accuracy or run.widths != bundle.widths:
        return False
    one, other = (todays_config(dict(x.config)) for x in (run, bundle))
    return not any(changed_keys(one, other, MOVED))


def joined(subjects: Sequence[Subject]) -> list[Subject]:
    """Each bundle with its run, in the order in which the two were first met."""
    found: list[Subject] = []
    for subject in subjects:
        place = next((i for i, other in enumerate(found) if _are_one(other, subject)), None)
        if place is None:
            found.append(subject)
            continue
        run, bundle = (found[place], subject) if subject.bundle else (subject, found[place])
        found[place] = replace(
            run,
            # What the file holds, rounding included.
            **{
                key: getattr(bundle, key)
                for key in ("budget", "params", "macs", "widths", "stored")
            },
            **{
                key: getattr(bundle, key) for key in ("trunk_hash", "packs", "file_bytes", "bundle")
            },
        )
    return found


def _are_one(one: Subject, other: Subject) -> bool:
    """Whether one is a run and the other its bundle."""
    run, bundle = (one, other) if other.bundle else (other, one)
    if run.bundle or not bundle.bundle or run.identity is None or bundle.identity is None:
        return False
    return same_network(run.identity, bundle.identity)


def stored_by_run(train: Mapping[str, Any], result: Mapping[str, Any]) -> float | None:
    """`Subject.stored` of a run, by its `[train]` and the result in its record."""
    if not has_own_weights(train):
        return None
    return float((result.get("stored") or {}).get("params", math.nan))


def stored_in(manifest: Manifest) -> float | None:
    """`Subject.stored` of a bundle."""
    if not manifest.own_weights and not manifest.adapters:
        return None
    return math.nan if manifest.paper is None else manifest.paper.params


def read_file(path: Path) -> dict[str, Any]:
    """What `prunion eval -o` or `prunion bench --json` wrote; InputError for another file.

    Raises KeyError, TypeError and their like where it lacks what is shown of it.
    """
    value = read_json(path, InputError)
    kinds = {"rows", "scenario", "confusion"}
    if isinstance(value, dict) and kinds & value.keys() and "bundle" in value:
        if "confusion" in value:
            check_answers(value)
        else:
            check_measured(value)
        return value
    raise InputError(
        f"{path} is no file of `prunion eval -o` or `prunion bench --json`: give one of these"
    )


def with_file(subjects: Sequence[Subject], path: Path, value: Mapping[str, Any]) -> list[Subject]:
    """The subjects with an evaluation or a measurement added to the one it is of.

    Raises InputError where it is of none of them, or may be of several that differ.
    """
    place, trunk = str(Path(str(value["bundle"])).resolve()), value.get("trunk_hash")
    there = [s for s in subjects if s.bundle and s.bundle == place]
    alike = [s for s in subjects if s.trunk_hash and s.trunk_hash == trunk]
    alike = there if trunk is None else alike
    told = [_is_of(value, s) for s in alike]
    own = [s for s, sure in zip(alike, told, strict=True) if sure]
    if not own:  # of before it said which network of a trunk it is of
        own = [s for s, sure in zip(alike, told, strict=True) if sure is None]
        if len({_network(s) for s in own}) > 1:
            names = " or ".join(s.bundle for s in own)
            raise InputError(
                f"{path} is of {names}, which have one trunk, and does not say of which: write it "
                "again, or give one of them alone"
            )
    if there and not own:
        raise InputError(
            f"{path} is of what {shown(value['bundle'])} was before, another network than now: "
            "write it again"
        )
    if not own:
        raise InputError(
            f"{path} is of {shown(value['bundle'])}, which is not among what is reported: give "
            "that bundle too"
        )
    chosen = next((s for s in own if s in there), own[0])
    key = "evaluations" if "confusion" in value else "measured"
    more: dict[str, Any] = {key: [*getattr(chosen, key), value]}
    return [replace(s, **more) if s is chosen else s for s in subjects]


def _is_of(value: Mapping[str, Any], subject: Subject) -> bool | None:
    """Whether a file is of a subject that has its trunk; None where that cannot be told.

    Runs on one frozen trunk share its hash, and differ in their banks and heads alone.
    """
    pack, held = value.get("pack_sha256"), subject.packs.get(str(value.get("domain")))
    model, own = value.get("model_sha256"), subject.identity.model if subject.identity else ""
    if pack and pack == held:
        return True
    if model and own:
        return bool(model == own)
    return False if pack and held else None


def _network(subject: Subject) -> Any:
    """What two subjects of one trunk have in common if they are one network."""
    model = subject.identity.model if subject.identity else ""
    return model or tuple(sorted(subject.packs.items()))


def read_baseline(run: Path, made_by: MadeBy) -> tuple[dict[str, float], str]:
    """Accuracy by domain of a run's baseline, and why it may not stand beside it, if so."""
    path = run / BASELINE
    checkpoint = path / CHECKPOINT / CHECKPOINT_FILE
    try:
        meta = read_json(checkpoint, InputError) if checkpoint.is_file() else {}
        accuracy = {str(d["name"]): float(d["accuracy"]) for d in meta.get("domains", [])}
    except PrunionError:
        return {}, ""
    why = not_paired(read_made_by(path), made_by, accuracy)
    if not accuracy or not why:
        return accuracy, ""
    return {}, (
        f"The baseline in its folder does not stand beside it: {why}. `prunion train --baseline` "
        "tests both on the same images with --resume, or trains both anew with --force."
    )
