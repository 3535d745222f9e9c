"""What `torchrun` tells each process that it starts, by the environment: no torch is needed."""

from __future__ import annotations

import os

from prunion.runtime.base import shown
from prunion.runtime.errors import ConfigError

__all__ = ["attempt", "is_first_process", "processes_started", "restarted"]


def processes_started() -> int:
    """How many processes `torchrun` started; 1 without it. Raises ConfigError for no number."""
    told = os.environ.get("WORLD_SIZE", "1")
    if not (told.isascii() and told.isdigit() and int(told)):
        raise ConfigError(
            f"the environment's WORLD_SIZE is {shown(told)}, no number of processes: start with "
            "torchrun, which sets it, or unset it"
        )
    return int(told)


def is_first_process() -> bool:
    """Whether this process writes and reports for all; in a run `Processes.first` says the same."""
    return os.environ.get("RANK", "0") == "0"


def restarted() -> bool:
    """Whether `torchrun --max-restarts` started this process anew, after one of the run's ended."""
    return attempt() != "0"


def attempt() -> str:
    """How many times the processes were started before, as text."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
