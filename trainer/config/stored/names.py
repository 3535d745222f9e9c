"""What the files and folders of a run's folder are called, for whoever writes or reads one."""

from __future__ import annotations

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
