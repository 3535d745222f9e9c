"""What one of several processes that learn together does, and one that learns alone.

Each run is `[RUN.toml, OUT, in float64 or not]`; what a process saw is in `OUT.RANK`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from prunion.trainer.config import load_config
from prunion.trainer.processes import joined_processes
from prunion.trainer.run.start import begin


def learn(run_file: str, out: str, double: bool) -> None:
    """All epochs of a run."""
    config = load_config(run_file)
    with joined_processes(len(config.domains), config.train, "cpu") as processes:
        training, _ = begin(config, Path(out), "cpu", processes)
        if double:
            training.net.double()
        lines: list[dict[str, Any]] = []
        while training.epoch < config.train.epochs:
            training.run_epoch(lines.append)
        torch.save((lines, training.net.state_dict()), f"{out}.{os.environ.get('RANK', '0')}")


def learn_all(runs: list[list[Any]]) -> None:
    """One run after the other."""
    for run in runs:
        learn(*run)
