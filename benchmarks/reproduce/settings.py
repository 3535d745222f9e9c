"""What is asked of `prunion reproduce`, and the file of lines that it goes on with."""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from prunion.benchmarks.reproduce.archives import (
    DECATHLON_SOURCE,
    SKETCH_SOURCE,
    BenchmarkImages,
    open_decathlon,
    open_sketch,
)
from prunion.benchmarks.reproduce.catalogue import BUDGETS, ReproducedRow
from prunion.runtime.base import lock_folder, replace_file
from prunion.runtime.errors import ConfigError, InputError
from prunion.trainer.config import (
    METHOD_KEYS,
    Device,
    InputConfig,
    TrainConfig,
    check_keys,
    put_value,
    read_change,
)

__all__ = [
    "DATA",
    "Reproduction",
    "add_line",
    "changes_of",
    "check_changes",
    "input_of",
    "key_of_row",
    "read_lines",
    "write_text",
]

log = logging.getLogger(__name__)
PATIENCE = 60.0  # seconds, with another process that writes a line
# The domain of each benchmark that trunks are pretrained on.
SOURCES = {"decathlon": DECATHLON_SOURCE, "imagenet-to-sketch": SKETCH_SOURCE}
DATA = "data"  # below the output: what was unpacked, and tables
# Of the methods' own keys those that say how fast and how their numbers learn.
RATES = ("adapter_dropout", "adapter_decay", "adapter_lr", "affine_gradient")
# Keys of `[train]` that say what a domain has of its own, and who decides about channels.
DECIDING = (
    *("method", "recipe", "trunk", "norms", "ranking", "sharing", "domain_budget", "cut"),
    *(key for key in METHOD_KEYS if key not in RATES),
)
OUTSIDE = re.compile(r"[^A-Za-z0-9_.=+-]+")  # of names of files


@dataclass(frozen=True)
class Reproduction:
    """What is asked of `prunion reproduce`.

    Attributes:
        data, output: the benchmark's archives or folders, and where everything is written.
        methods: names of rows or methods; all where there is none.
        networks: in place of each method's own.
        budgets: β of the rows that prune.
        epochs: of every row, and `source_epochs` of a trunk that is pretrained; 0 for the papers'.
        limit_images: at most so many of each part of a domain, for trying; 0 for all.
        size: side of the images in pixels; 0 for the papers'.
        final: train on training and validation images, as for a submission.
        crops: views of each test image.
        weights: a file for a network, by its name; else it is pretrained, or the library's.
        source_accuracy: percent of the source domain by network, of weights that do not tell.
        changes: keys of `[train]` in place of the rows'.
    """

    benchmark: str
    data: Path
    output: Path
    methods: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    budgets: tuple[float, ...] = BUDGETS
    epochs: int = 0
    source_epochs: int = 0
    limit_images: int = 0
    size: int = 0
    final: bool = False
    crops: int = 1
    weights: Mapping[str, str] = field(default_factory=dict)
    source_accuracy: Mapping[str, float] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)
    threads: int = 0
    device: Device = "auto"

    @property
    def source(self) -> str:
        """The domain that trunks are pretrained on; its images train no row."""
        return SOURCES[self.benchmark]

    @property
    def trial(self) -> list[str]:
        """What makes a trial of it, for names: fewer images, or smaller ones."""
        parts = [f"n{self.limit_images}"] if self.limit_images else []
        return [*parts, *([f"px{self.size}"] if self.size else [])]

    def open(self) -> list[BenchmarkImages]:
        """The benchmark's domains. Raises DataError for what is missing or damaged."""
        opened = open_decathlon if self.benchmark == "decathlon" else open_sketch
        return opened(self.data, self.output / DATA, self.limit_images)


def input_of(asked: Reproduction) -> InputConfig:
    """What the networks see: 64 of 72 pixels, or 224 of 256."""
    side, share = (64, 72 / 64) if asked.benchmark == "decathlon" else (224, 256 / 224)
    side = asked.size or side
    return InputConfig((side, side), round(share * side), test_crops=asked.crops)


def check_changes(changes: Mapping[str, Any], what: str) -> None:
    """Refuse keys of `[train]` that make another method of one, with an InputError.

    Args:
        what: what they decide, and what to do in place of it.
    """
    if wrong := [key for key in changes if key in DECIDING]:
        raise InputError(f"--set train.{wrong[0]} is {what}")


def key_of_row(asked: Reproduction, row: ReproducedRow, seed: int) -> str:
    """What tells a line from all others, and is its files' name."""
    parts = [row.network, row.name, f"seed{seed}"]
    parts += [f"e{asked.epochs}"] if asked.epochs else []
    parts += [*asked.trial, *(["final"] if asked.final else [])]
    parts += [f"x{asked.crops}"] if asked.crops > 1 else []
    parts += [f"{key}={value}" for key, value in sorted(asked.changes.items())]
    return OUTSIDE.sub("_", "-".join(parts))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows that were run. Raises InputError, with the line, for what is none.

    Those of an earlier prunion call `flop_union` what is `flop_graph` now, and have no other.
    """
    if not path.is_file():
        return []
    found = []
    for number, text in enumerate(path.read_text("utf-8").splitlines(), 1):
        try:
            line = json.loads(text)
            assert isinstance(line["key"], str) and isinstance(line["accuracy"], dict)
        except (ValueError, KeyError, TypeError, AssertionError):
            raise InputError(
                f"{path} line {number} is no row of `prunion reproduce`: remove that line"
            ) from None
        if "flop_graph" not in line and "flop_union" in line:
            line["flop_graph"] = line.pop("flop_union")
        found.append(line)
    return found


def add_line(path: Path, line: Mapping[str, Any]) -> None:
    """Write one more line, whole or not at all; none for a row that has got one meanwhile.

    Several processes may run rows of one folder: none loses another's line.
    """
    with _alone(path.parent):
        if any(other["key"] == line["key"] for other in read_lines(path)):
            log.warning(
                "row %s: another process wrote its line meanwhile, which stays", line["key"]
            )
            return
        before = path.read_text("utf-8") if path.is_file() else ""
        write_text(path, before + json.dumps(line, ensure_ascii=False) + "\n")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """No other process that asks for it is in here, unless one hangs: a line must not be lost."""
    handle, end = -1, time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            handle = lock_folder(folder)
            break
        except BlockingIOError:
            time.sleep(0.05)
    try:
        yield
    finally:
        if handle >= 0:
            os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a file, whole or not at all."""
    with replace_file(path) as temporary:
        temporary.write_text(text, "utf-8")


def changes_of(settings: Sequence[str]) -> dict[str, Any]:
    """Keys of `[train]` from `train.KEY=VALUE`, as `prunion train --set` takes them.

    Raises ConfigError for another table or an unknown key.
    """
    found: dict[str, Any] = {}
    for text in settings:
        (table, *path), value = read_change(text)
        if table != "train" or not path:
            raise ConfigError(f"--set {text}: give train.KEY=VALUE, a key of [train]")
        check_keys("train", path[:1], [x.name for x in fields(TrainConfig)])
        put_value(found, path, value)
    return found
