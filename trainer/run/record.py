"""What a run leaves for `prunion report`: figures, choices and mistakes, in `record.json`.

Also the accuracy after each epoch, on a few fixed images: of validation, or else of the test set.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from prunion.runtime.measure import Answers, Figures, mistakes
from prunion.trainer.data import Domain, eval_transform, resized_in_memory
from prunion.trainer.learning import Training
from prunion.trainer.network import evaluate
from prunion.trainer.run.result import RunResult

__all__ = [
    "RECORD",
    "answer_records",
    "run_record",
    "watch_accuracy",
    "watched_images",
    "watched_part",
]

RECORD = "record.json"
FORMAT_VERSION = 1
MOST_WATCHED = 256  # images of a domain after each epoch
SHARE_WATCHED = 8  # of as many as it trains on: an answer costs a third of a training step
CACHE_BYTES = 32 << 20


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
            "right_bits": np.packbits(found.answers == found.labels).tobytes().hex(),
            "mistakes": mistakes(figures, domain.test),
        }
    texts = training.processes.share_text(json.dumps(own))
    known = {name: record for text in texts for name, record in json.loads(text).items()}
    return {domain.name: known[domain.name] for domain in domains}


def run_record(
    training: Training, result: RunResult, records: Mapping[str, Mapping[str, Any]], model: str
) -> dict[str, Any]:
    """The value of `record.json`; `model` is the SHA-256 of the network's file.

    `choices` has what each domain chose of the channels that are kept, before it settled: one bit
    for each unit, in hex.
    """
    rows = training.choices().cpu().numpy() > 0
    names = [domain.name for domain in training.config.domains]
    chosen = {name: np.packbits(row).tobytes().hex() for name, row in zip(names, rows, strict=True)}
    value = result.to_json()
    del value["folder"], value["verdict"]  # a verdict is made of what is here
    return {
        "format_version": FORMAT_VERSION,
        "kind": "prunion run",
        "model_sha256": model,
        "result": value,
        "choices": {"units": rows.shape[1], "domains": chosen},
        "domains": dict(records),
    }
