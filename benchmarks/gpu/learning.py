"""The learning table's rows side by side: one small network leaves a GPU idle.

A step of a small network waits for Python, so a GPU takes as many trainings as the host has cores.
Each is a process of its own, resumable as the learning table is; they share their output's files.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PLAN", "LearningTask", "run_tasks", "tasks"]

EIGHT = ("--domains", "all")
# Alike: objects, photographs, drawn lines; not alike: photographs, textures; objects, characters.
PAIRS = (
    "caltech101,cifar100",
    "flowers5,vehicles",
    "omniglot,sketch",
    "flowers5,dtd10",
    "cifar100,omniglot",
)
# What decides comes first: an interrupted table is still an answer. File, arguments, seeds, rows.
PLAN: tuple[tuple[str, tuple[str, ...], str, str], ...] = (
    ("eight", EIGHT, "01234", "tuned-all tuned-025 one-shot-025 tuned-macs-050 one-shot-macs-050"),
    ("eight", EIGHT, "012", "tuned-010 one-shot-floor-010 tuned-macs-025 one-shot-macs-025"),
    ("eight", EIGHT, "012", "greedy-010 greedy-macs-025 greedy-025 separate-025"),
    ("methods", (), "0", "frozen-all tuned-all tuned-025 frozen-025 frozen-macs-025"),
    ("methods", (), "0", "frozen-lora-025 frozen-lora-macs-025 own-050 tuned-050"),
    ("methods", (), "0", "norms feature finetune piggyback piggyback-norms affine lora parallel"),
    ("methods", (), "0", "series taps svd packnet bap-slice ba2-slice"),
    ("eight", (*EIGHT, "--epochs", "2,4,30"), "0", "tuned-all tuned-025 tuned-macs-050"),
    *(("pairs", ("--domains", pair), "012", "tuned-025 separate-025") for pair in PAIRS),
    ("pairs", (), "012", "tuned-025 separate-025"),
    ("methods", (), "0", " ".join(f"paper-slice-{beta}" for beta in ("100", "075", "050", "025"))),
    ("methods", (), "0", "paper-slice-epoch-050 paper-slice-epoch-025 paper-slice-none-050"),
    ("methods", (), "0", "paper-slice-intersection-050 paper-slice-jaccard-050"),
    ("eight", EIGHT, "0", "slim-first-magnitude-global-025 slim-first-taylor-global-025"),
    ("eight", EIGHT, "0", "intersection-025 jaccard-025 ba2-tuned-025 tuned-random-025"),
    ("eight", EIGHT, "012", "frozen-all frozen-025 greedy-macs-050"),
    ("methods", (), "12", "frozen-all tuned-all tuned-025 frozen-025 frozen-macs-025"),
    ("methods", (), "12", "frozen-lora-025 frozen-lora-macs-025 own-050 tuned-050"),
    ("methods", (), "12", "norms piggyback piggyback-norms affine lora parallel finetune"),
    ("lite0", ("--backbone", "lite0"), "012", "tuned-all tuned-025 one-shot-025"),
    ("lite0", ("--backbone", "lite0"), "012", "tuned-macs-050 one-shot-macs-050"),
)


@dataclass(frozen=True)
class LearningTask:
    """A row of one seed: the file of its line, and the learning table's arguments."""

    file: str
    arguments: tuple[str, ...]

    @property
    def name(self) -> str:
        """`eight: --domains all --seed 0 tuned-025`."""
        return f"{self.file}: {' '.join(self.arguments)}"


def tasks() -> list[LearningTask]:
    """All rows of the plan, in its order: seed by seed within a line."""
    return [
        LearningTask(file, (*arguments, "--seed", seed, row))
        for file, arguments, seeds, rows in PLAN
        for seed in seeds
        for row in rows.split()
    ]


def run_tasks(
    given: Sequence[LearningTask], folder: Path, common: Sequence[str], lanes: int, minutes: float
) -> tuple[list[str], int]:
    """Run what the files in `folder` lack, `lanes` at a time.

    Returns the names of those that failed, and how many were not begun.

    Args:
        common: arguments of every row, as data, weights and settings.
        minutes: after this long no row is begun any more.
    """
    begun = time.monotonic()

    def run(task: LearningTask) -> bool | None:
        if time.monotonic() - begun > 60 * minutes:
            return None
        command = [sys.executable, "-m", "prunion.benchmarks.learning", *common, *task.arguments]
        command += ["-o", str(folder / f"{task.file}.jsonl")]
        return subprocess.run(command, check=False).returncode == 0

    with ThreadPoolExecutor(lanes) as pool:
        ended = list(pool.map(run, given))
    failed = [task.name for task, well in zip(given, ended, strict=True) if well is False]
    return failed, ended.count(None)
