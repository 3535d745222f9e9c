"""What the files and folders of a run's folder are called, for whoever writes or reads one."""

from __future__ import annotations

from pathlib import Path

from prunion.runtime.base import listed

__all__ = [
    "BASELINE",
    "CHECKPOINT",
    "CHECKPOINT_FILE",
    "GRAPH",
    "LOG",
    "OWN_STATE",
    "RECORD",
    "RUN_FILE",
    "STATE",
    "TENSORBOARD",
    "runs_below",
]

RUN_FILE = "run.toml"  # the copy of what the run was started with
LOG = "metrics.jsonl"  # the figures of every step, one line each
STATE = "state.safetensors"  # from which the run goes on
OWN_STATE = "own.safetensors"  # the same, while domains are thinned to budgets of their own
GRAPH = "graph.json"  # the traced network; a checkpoint has one too
RECORD = "record.json"  # of a finished run: its figures, choices and mistakes

# Folders in it.
CHECKPOINT = "checkpoint"  # the finished network
CHECKPOINT_FILE = "checkpoint.json"  # in it: how it was made, and what its files must be
BASELINE = "baseline"  # the run without pruning, itself a run's folder
TENSORBOARD = "tensorboard"

MOST_NAMED = 4  # runs in a message


def runs_below(folder: Path) -> str:
    """What a folder holds in place of a run, for messages; "" without finished runs in it."""
    found = sorted(folder.glob(f"*/{CHECKPOINT}/{CHECKPOINT_FILE}"))
    if not found:
        return ""
    names = [path.parent.parent.name for path in found]
    if len(names) == 1:
        return f"the run {names[0]}: give that folder"
    return f"several runs, {listed(names, MOST_NAMED)}: give one of them"
