"""Where a run begins: at the state in its folder, at one that another run kept, or at nothing."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunion.runtime.base import check_space, read_json, write_json
from prunion.runtime.errors import CheckpointError
from prunion.trainer.config import GRAPH, LOG, RUN_FILE, STATE, keep_run_file
from prunion.trainer.learning import Training
from prunion.trainer.run.folder.snapshot import load_snapshot, snapshot_bytes, snapshot_step
from prunion.trainer.run.folder.states import Fork, saved_words

__all__ = ["Beginning", "beginning_of", "check_run_space", "restore", "set_out"]


@dataclass(frozen=True)
class Beginning:
    """Where a run begins: at its own state, at one that another run kept, or at its first step.

    Attributes:
        resumes: whether it is its own state, in its folder.
        fork: the other run's; None without one.
        begun: the folder whose traced network the run goes on with; None makes it anew.
    """

    resumes: bool = False
    fork: Path | None = None
    begun: Path | None = None

    def graph(self) -> Any:
        """The network of a run that goes on, so that what made it is not needed again."""
        path = None if self.begun is None else self.begun / GRAPH
        return read_json(path, CheckpointError) if path is not None and path.is_file() else None


def beginning_of(
    folder: Path, *, resume: bool, fork: Path | None = None, begun: Path | None = None
) -> Beginning:
    """Where the run in `folder` begins: at its own state, if it has one to resume from.

    Args:
        fork: a state that another run kept.
        begun: that run's folder.
    """
    if resume and (folder / STATE).is_file():
        return Beginning(resumes=True, begun=folder)
    return Beginning() if fork is None else Beginning(fork=fork, begun=begun)


def check_run_space(
    folder: Path, training: Training, forks: Sequence[Fork], beginning: Beginning
) -> None:
    """Refuse to begin what would not fit: the state, twice while it is replaced, and the result.

    Args:
        forks: states for others; those that are there take no more, and a step behind leaves none.
    """
    behind = snapshot_step(folder / STATE) if beginning.resumes else 0
    later = [fork for fork in forks if fork.step > behind and not fork.path.is_file()]
    state, net = snapshot_bytes(training)
    there = (folder / STATE).stat().st_size if (folder / STATE).is_file() else 0
    check_space(folder, (2 + len(later)) * state + net - there, "choose another place with -o")


def set_out(
    training: Training, folder: Path, beginning: Beginning, run_file: Path | None
) -> dict[str, Any]:
    """Put a run to its beginning, and write into a new one's folder what stays; its facts."""
    if beginning.resumes:
        return restore(training, folder)
    first, config = training.processes.on_first, training.config
    first(lambda: keep_run_file(run_file, config, folder / RUN_FILE))
    first(lambda: write_json(folder / GRAPH, training.net.graph))
    if beginning.fork is None:
        return {}
    facts = load_snapshot(beginning.fork, training, any_limit=True)
    earlier = beginning.fork.with_suffix(".jsonl")
    first(lambda: _keep_log(earlier, folder / LOG))
    return facts


def restore(training: Training, folder: Path, state: str = STATE) -> dict[str, Any]:
    """Put a run back to where its folder's state left it; returns the facts kept with it.

    Raises CheckpointError if the state is of another run.
    """
    facts = load_snapshot(folder / state, training)
    training.saved = saved_words(folder / state, training)
    return facts


def _keep_log(earlier: Path, log: Path) -> None:
    if earlier.is_file():
        shutil.copyfile(earlier, log)
