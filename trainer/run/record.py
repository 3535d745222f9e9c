"""What a run leaves for `prunion report`: figures, choices and mistakes, in `record.json`.

Also the accuracy after each epoch, on a few fixed images: of validation, or else of the test set.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from prunion.runtime.base import bits_to_hex
from prunion.runtime.errors import PrunionError
from prunion.runtime.images import same_images
from prunion.runtime.measure import Answers, Figures, mistakes
from prunion.trainer.config import BASELINE, RunConfig
from prunion.trainer.data import Domain, ImageSet, eval_transform, resized_in_memory
from prunion.trainer.learning import Training, lower_rates
from prunion.trainer.network import evaluate
from prunion.trainer.run.folder import BEFORE, WATCHED, run_facts
from prunion.trainer.run.result import RunResult
from prunion.trainer.score import MadeBy, other_images, read_made_by

__all__ = [
    "answer_records",
    "check_answers",
    "image_digests",
    "made_by",
    "other_than_noted",
    "run_record",
    "seen_shares",
    "tell_alike",
    "tell_other_images",
    "watch_accuracy",
    "watched_images",
    "watched_part",
]

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
MOST_WATCHED = 256  # images of a domain after each epoch
SHARE_WATCHED = 8  # of as many as it trains on: an answer costs a third of a training step
CACHE_BYTES = 32 << 20


def check_answers(
    training: Training, answers: Mapping[int, Answers], domains: Sequence[Domain]
) -> None:
    """Tell of answers to test images that are not finite; a step's loss comes before its update.

    Raises PrunionError of a domain that has no other.
    """
    own = {i: (int((found.confidences == 0).sum()), len(found)) for i, found in answers.items()}
    for text in training.processes.share_text(json.dumps(own)):
        for index, (lost, images) in json.loads(text).items():
            told = f"domain {domains[int(index)].name}: the trained network's answers to "
            told += f"{lost:,} of {images:,} test images are not finite"
            fix = lower_rates(training.config.train, origin=training.origin)
            if lost and lost == images:
                raise PrunionError(f"{told}: {fix}")
            if lost and training.processes.first:
                log.warning(f"{told}, and count as wrong: {fix}")


def tell_alike(
    answers: Mapping[int, Answers], domains: Sequence[Domain], config: RunConfig
) -> None:
    """Warn of a domain whose test images all got one answer, with one and the same confidence."""
    train, whole = config.train, config.budget.is_fraction and config.budget.amount == 1
    cuts = (train.traits.prunes or train.granularity == "slice") and not whole
    for index, own in answers.items():
        given = set(zip(own.answers.tolist(), own.confidences.tolist(), strict=True))
        certain = bool(len(own)) and own.confidences[0] == 1
        # Of right answers it may be so: many logits that are far apart give a confidence of 1.
        if len(own) < 2 or len(given) > 1 or (certain and len(set(own.labels.tolist())) == 1):
            continue
        why, fix = "nothing of an image reaches the head", "raise [budget] limit"
        if certain:
            why, fix = "the network's logits have grown without bound", lower_rates(train)
        elif not cuts:
            fix = lower_rates(train)
        log.warning(
            f"domain {domains[index].name}: every test image got the very same answer, so "
            f"{why}: {fix}" + ("" if certain else ", or learn for longer")
        )


def watched_part(training: Training, domains: Sequence[Domain]) -> list[Domain]:
    """The domains with a few images each as `test`, the same in every epoch, kept in memory."""
    side = eval_transform(training.config.input).shorter_side
    parts = []
    for index, domain in enumerate(domains):
        images, most = domain.watched, watched_images(domain)
        if training.processes.reads(index):
            chosen = np.linspace(0, len(images) - 1, most).round().astype(np.int64)
            images = resized_in_memory(images.subset(chosen), side, CACHE_BYTES)
        parts.append(replace(domain, test=images))
    return parts


def watched_images(domain: Domain) -> int:
    """How many images of a domain are answered after each epoch."""
    share = max(32, len(domain.train) // SHARE_WATCHED)
    return min(MOST_WATCHED, share, len(domain.watched))


def watch_accuracy(training: Training, parts: Sequence[Domain]) -> dict[str, dict[str, float]]:
    """Accuracy on each domain's part, with the switches as they are now.

    As `validation_accuracy` and `test_part_accuracy` of those domains that have such a part.
    """
    with training.fitted_norms():
        found = evaluate(
            training.net,
            parts,
            training.config.input,
            training.switches() if training.phase == "ramp" else None,
            processes=training.processes,
        )
    figures: dict[str, dict[str, float]] = {}
    for part in parts:
        key = "test_part_accuracy" if part.validation is None else "validation_accuracy"
        figures.setdefault(key, {})[part.name] = found[part.name]
    return figures


def seen_shares(training: Training, domains: Sequence[Domain]) -> dict[str, dict[str, float]]:
    """How many of a few training images the network answers right as it is exported.

    In its own steps it goes by the statistics of each batch, which nobody has later. Empty where
    none move and no cut came after a step of the last epoch: there those steps tell as much.
    """
    if not training.norms.moves and not _cut_later(training):
        return {}
    parts, counts = [], []
    for domain in domains:
        counts.append(min(MOST_WATCHED, len(domain.train)))
        chosen = np.linspace(0, len(domain.train) - 1, counts[-1]).round().astype(np.int64)
        parts.append(replace(domain, test=domain.train.subset(chosen)))
    shape, workers = training.config.input, training.config.train.workers
    found = evaluate(training.net, parts, shape, processes=training.processes, workers=workers)
    pairs = zip(domains, counts, strict=True)
    return {d.name: {"images": count, "accuracy": found[d.name]} for d, count in pairs}


def _cut_later(training: Training) -> bool:
    """Whether any step of the run's last epoch was of the network before its last cut."""
    last = training.step - training.batches.steps_per_epoch
    # Thinning settles for an epoch of its own.
    return not training.thinned and training.norms.cut_at(training.step) > last


def answer_records(
    training: Training, domains: Sequence[Domain], answers: Mapping[int, Answers]
) -> dict[str, dict[str, Any]]:
    """Figures and mistakes of every domain by its name, from each process's own `answers`."""
    own = {}
    for index, found in answers.items():
        domain = domains[index]
        figures = Figures(domain.name, domain.classes, found)
        own[domain.name] = {
            **figures.to_json(),
            "right_bits": bits_to_hex(found.answers == found.labels),
            "mistakes": mistakes(figures, domain.test),
        }
    texts = training.processes.share_text(json.dumps(own))
    known = {name: record for text in texts for name, record in json.loads(text).items()}
    return {domain.name: known[domain.name] for domain in domains}


def made_by(training: Training, domains: Sequence[Domain]) -> dict[str, Any]:
    """What a run is made by and of, for `prunion.trainer.score` to hold against another's.

    Args:
        domains: also those of another seed than the run's.
    """
    facts = run_facts(training)
    sets = {
        d.name: {
            "classes": list(d.classes),
            "images": {part: len(images) for part, images in _parts(d).items()},
            "digests": image_digests(d),
        }
        for d in domains
    }
    more: dict[str, Any] = {
        key: facts[key] for key in ("config", "teacher", "origin", "profile") if key in facts
    }
    more["cost"] = facts["cost"][0]  # of the whole network: what is allowed follows from it
    if "importance" in facts:
        text = json.dumps(facts["importance"])
        more["importance"] = hashlib.sha256(text.encode()).hexdigest()
    return {**more, "domains": sets}


def tell_other_images(
    training: Training, domains: Sequence[Domain], folder: Path, facts: dict[str, Any]
) -> None:
    """Say that a run which goes on is measured on other images than before, and note these.

    A finished run is tested again. An accuracy after warm-up on other images stands beside nothing.
    """
    other = other_than_noted(facts, WATCHED, {d.name: d.watched.digest for d in domains})
    if other and facts.get(BEFORE):
        facts[BEFORE] = {}  # it cannot be measured again
    finished: MadeBy = read_made_by(folder)
    today = made_by(training, domains)
    told = [x for d in domains for x in other_images(finished, today, d.name, ("test",))]
    if told and training.processes.first:
        rival = (folder / BASELINE).is_dir()
        log.warning(
            "%s was tested on %s: it is tested again on those that are there now%s",
            folder,
            " and ".join(told),
            "; its baseline is compared once --baseline --resume has tested that too" * rival,
        )
    elif other and training.processes.first:
        log.warning(
            "accuracy of %s before step %d was measured on other images than from here on",
            ", ".join(other),
            training.step,
        )


def other_than_noted(facts: dict[str, Any], key: str, now: Mapping[str, str]) -> list[str]:
    """The domains whose images are others than those that `facts` note, which then note today's.

    An accuracy that is kept with a state needs such a note: images may change before it is told.

    Args:
        now: digest of each domain's images.
    """
    before = facts.get(key, {})
    facts[key] = dict(now)
    return [name for name in now if same_images(before.get(name, ""), now[name]) is False]


def image_digests(domain: Domain) -> dict[str, str]:
    """The digest of each set of a domain's images."""
    return {part: images.digest for part, images in _parts(domain).items()}


def _parts(domain: Domain) -> dict[str, ImageSet]:
    parts = {"train": domain.train, "test": domain.test, "validation": domain.validation}
    return {part: images for part, images in parts.items() if images is not None}


def run_record(
    training: Training,
    domains: Sequence[Domain],
    result: RunResult,
    records: Mapping[str, Mapping[str, Any]],
    model: str,
    seen: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:
    """The value of `record.json`; `model` is the SHA-256 of the network's file.

    `seen` has how the finished network answers images that it was trained on, or nothing, and
    `cut_later` whether the last epoch's steps were of another.

    `choices` has what each domain chose of the channels that are kept, before it settled: one bit
    for each unit, in hex.
    """
    rows = training.choices().cpu().numpy() > 0
    names = [domain.name for domain in training.config.domains]
    chosen = {name: bits_to_hex(row) for name, row in zip(names, rows, strict=True)}
    value = result.to_json()
    del value["folder"], value["verdict"]  # a verdict is made of what is here
    return {
        "format_version": FORMAT_VERSION,
        "kind": "prunion run",
        "model_sha256": model,
        "made_by": made_by(training, domains),
        "result": value,
        "choices": {"units": rows.shape[1], "domains": chosen},
        "domains": dict(records),
        "seen": dict(seen),
        "cut_later": _cut_later(training),
    }
