"""What one of several processes that learn together does, and one that learns alone.

Each run is `[RUN.toml, OUT, in float64 or not]`; what a process saw is in `OUT.RANK`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from prunion.trainer.config import TrainConfig, load_config
from prunion.trainer.learning.step import data_parallel
from prunion.trainer.processes import joined_processes
from prunion.trainer.run.start import begin
from tests.support.networks.small import Plain, domain_net


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


def wrap_again(out: str) -> None:
    """A network whose parameters begin to learn one after the other, its statistics apart."""
    train, statistics = TrainConfig(placement="images", sync_norms=False), []
    with joined_processes(2, train, "cpu") as processes:
        for start in (data_parallel.START, "no such argument"):
            data_parallel.START = start  # as torch has it, and as an older one does without
            net = domain_net(Plain())
            shared = data_parallel.SharedSteps(net, processes, train)
            for learns in (True, False):
                next(net.parameters()).requires_grad_(learns)
                for norm in net.norms.values():
                    norm.running_mean.fill_(1 + processes.index)
                with shared.exchange():
                    pass
                means = [norm.running_mean for norm in net.norms.values()]
                statistics.append(sorted({float(x) for mean in means for x in mean.flatten()}))
            shared.release()
        torch.save(statistics, f"{out}.{processes.index}")
