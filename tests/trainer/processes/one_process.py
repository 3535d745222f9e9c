"""One of several processes that learn together: `one_process.py RUN.toml OUT [double]`."""

from __future__ import annotations

import os
import sys
from typing import Any

import torch

from prunion.trainer.config import load_config
from prunion.trainer.processes import joined_processes
from prunion.trainer.run.start import begin


def learn(run_file: str, out: str, *, double: bool) -> None:
    """All epochs of a run; what each process saw is in OUT.RANK."""
    config = load_config(run_file)
    with joined_processes(len(config.domains), config.train, "cpu") as processes:
        training, _ = begin(config, out, "cpu", processes)  # type: ignore[arg-type]
        if double:
            training.net.double()
        lines: list[dict[str, Any]] = []
        while training.epoch < config.train.epochs:
            training.run_epoch(lines.append)
        torch.save((lines, training.net.state_dict()), f"{out}.{os.environ['RANK']}")


if __name__ == "__main__":
    learn(sys.argv[1], sys.argv[2], double="double" in sys.argv[3:])
