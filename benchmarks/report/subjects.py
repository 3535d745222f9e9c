"""What runs, bundles, evaluations and measurements say, put together by what they belong to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from prunion.benchmarks.report.channels import (
    channel_users,
    chosen_shares,
    layer_widths,
    read_choices,
)
from prunion.benchmarks.report.charts_answers import check_answers
from prunion.benchmarks.report.join import (
    joined,
    read_baseline,
    read_file,
    stored_by_run,
    stored_in,
    with_file,
)
from prunion.benchmarks.report.logs import (
    domains_of_log,
    last_scores,
    last_sharing,
    read_log,
)
from prunion.benchmarks.report.subject import Identity, Subject
from prunion.runtime.base import read_json
from prunion.runtime.bundle import Manifest, UnitTable, load_manifest
from prunion.runtime.errors import InputError
from prunion.trainer.config import (
    BASELINE,
    CHECKPOINT,
    CHECKPOINT_FILE,
    LOG,
    RECORD,
    check_checkpoint,
    runs_below,
)
from prunion.trainer.score import read_verdict

__all__ = ["read_subjects"]


def read_subjects(paths: Sequence[Path | str]) -> list[Subject]:
    """Read run folders, bundles, and the files of `prunion eval -o` and `prunion bench --json`.

    A bundle and the run that it comes from become one subject.

    Raises:
        InputError: a path is none of these, a file is damaged, or it belongs to nothing given.
        CheckpointError: a run's checkpoint is not whole, or of another prunion's format.
    """
    subjects: list[Subject] = []
    files: list[tuple[Path, dict[str, Any]]] = []
    for path in map(Path, paths):
        try:
            if path.is_file():
                files.append((path, read_file(path)))
            elif (path / "manifest.json").is_file():
                subjects.append(_of_bundle(path))
            elif any((path / name / CHECKPOINT_FILE).is_file() for name in (".", CHECKPOINT)):
                subjects.append(_of_run(path))
            elif (log := read_log(path / LOG)) and (domains := domains_of_log(log)):
                subjects.append(_of_log(path, log, domains))
            elif runs := runs_below(path):
                raise InputError(f"{path} holds {runs}")
            else:
                raise InputError(
                    f"{path} is no run folder with a checkpoint, no bundle and no file of `prunion "
                    "eval -o` or `prunion bench --json`: give one of these"
                )
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as exc:
            raise InputError(f"{path} is damaged ({exc!r:.80}): write it again") from None
    subjects = joined(subjects)
    for path, value in files:
        subjects = with_file(subjects, path, value)
    names = [subject.name for subject in subjects]
    return [
        replace(s, name=f"{s.name} ({i + 1})") if names.count(s.name) > 1 else s
        for i, s in enumerate(subjects)
    ]


def _of_run(path: Path) -> Subject:
    from safetensors.numpy import load_file

    folder = path / CHECKPOINT if (path / CHECKPOINT).is_dir() else path
    meta = read_json(folder / CHECKPOINT_FILE, InputError)
    check_checkpoint(folder, meta)
    table = UnitTable.from_json(read_json(folder / "units.json", InputError))
    switches = load_file(folder / "model.safetensors")["switches"] > 0
    record = _optional(path / RECORD)
    if record.get("model_sha256") != meta["model_sha256"]:
        record = {}  # of an older training in the same folder
    names = [str(d["name"]) for d in meta["domains"]]
    alive: np.ndarray = np.any(switches, axis=0)
    log = read_log(path / LOG)
    chosen = read_choices(record, names)
    usage = {} if chosen is None else channel_users(table, alive, chosen)
    accuracy = {str(d["name"]): float(d["accuracy"]) for d in meta["domains"]}
    befores = {str(d["name"]): d.get("accuracy_before") for d in meta["domains"]}
    train = meta["config"].get("train", {})
    result, made_by = record.get("result", {}), record.get("made_by", {})
    for figures in record.get("domains", {}).values():
        check_answers(figures)
    rounded = table.round_up(alive, int(meta["config"].get("budget", {}).get("round_to", 1)))
    baseline, note = read_baseline(path, made_by)
    return Subject(
        name=path.resolve().name,
        accuracy=accuracy,
        budget=meta["budget"],
        params=_pair(table.params(np.ones_like(alive)), table.params(alive)),
        macs=_pair(table.macs(np.ones_like(alive)), table.macs(alive)),
        widths=layer_widths(table, alive),
        identity=Identity(
            str(meta["model_sha256"]), meta["config"], accuracy, layer_widths(table, rounded)
        ),
        stored=stored_by_run(train, result),
        after_warmup={k: float(v) for k, v in befores.items() if v is not None},
        validated=any("validation" in x.get("images", {}) for x in result.get("data", {}).values()),
        baseline=baseline,
        notes=(note,) if note else (),
        made_by=made_by,
        verdict=_verdict(path) if record else (),
        epochs=(int(train.get("warmup", 0)), int(meta.get("epoch", 0))),
        chosen={} if chosen is None else chosen_shares(table, alive, names, chosen),
        users=usage,
        sharing=_floats(result.get("sharing_matrix") or last_sharing(log, names)),
        log=log,
        figures=record.get("domains", {}),
        scores=last_scores(result, log),
    )


def _of_log(path: Path, log: list[dict[str, Any]], domains: tuple[str, ...]) -> Subject:
    """A run that was stopped, or trains still: how it learned so far."""
    nothing = (0.0, 0.0)
    sharing = last_sharing(log, domains)
    return Subject(
        path.resolve().name,
        {},
        {},
        nothing,
        nothing,
        {},
        None,
        sharing=sharing,
        log=log,
        unfinished=domains,
    )


def _of_bundle(path: Path) -> Subject:
    manifest = load_manifest(path / "manifest.json")
    accuracy = {d.name: d.accuracy for d in manifest.domains if d.accuracy is not None}
    config = dict(manifest.provenance.config) if manifest.provenance else {}
    return Subject(
        name=path.resolve().name.removesuffix(".prunion"),
        accuracy=accuracy,
        budget=manifest.budget.to_json(),
        params=_pair(manifest.params["backbone"], manifest.params["exported"]),
        macs=_pair(manifest.macs["backbone"], manifest.macs["exported"]),
        widths=manifest.widths,
        identity=Identity(manifest.model_sha256, config, accuracy, manifest.widths),
        trunk_hash=manifest.trunk_hash,
        packs={d.name: manifest.files[d.pack] for d in manifest.domains},
        stored=stored_in(manifest),
        file_bytes=_answering_bytes(path, manifest),
        bundle=str(path.resolve()),
    )


def _answering_bytes(path: Path, manifest: Manifest) -> int:
    """Of what answers for all domains: where they have weights of their own, their packs too."""
    files = [next(iter(manifest.graphs.values()))]
    if manifest.own_weights:
        files += [manifest.own_weights, *(x for x in manifest.files if x.startswith("domains/"))]
    return sum((path / file).stat().st_size for file in files)


def _optional(path: Path) -> dict[str, Any]:
    value = read_json(path, InputError) if path.is_file() else {}
    return value if isinstance(value, dict) else {}


def _verdict(path: Path) -> tuple[str, ...]:
    whole = path / BASELINE
    found = read_verdict(path, whole if whole.is_dir() else None)
    return found.lines if found else ()


def _floats(matrix: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    return {a: {b: float(x) for b, x in row.items()} for a, row in matrix.items()}


def _pair(before: float, after: float) -> tuple[float, float]:
    return float(before), float(after)
